"""virt-rapld: the loop that samples, the document that is made of each sample, and the sockets that give it out.

A sample's figures go one way: loop -> kept_meter -> host_meter (a Document of them) -> publisher -> status_socket and
stream_socket. May import all rooms but install; commands and doctor read its document.
"""
