"""virt-rapld: the loop that samples, the document that is made of each sample, and the sockets that serve it.

A sample's figures go one way: loop -> kept_meter -> host_meter (a Document of them) -> publisher -> status_socket and
stream_socket. May import all rooms except install; commands and doctor read its document.
"""
