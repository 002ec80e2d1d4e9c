"""What serves metrics over HTTP: the server, who may ask (in the file format of Prometheus' exporters), and the answer.

A request goes server -> site -> scrape (the text of a document) -> feed (a document from virt-rapld's socket).
It has no rights, and strangers talk to it. May import ground and daemon; only its command imports it, and doctor what
needs none of its libraries.
"""
