"""virt-rapld: the loop that samples, the document that it makes of a sample, and the socket that gives it out.

May import all rooms but install; commands and doctor read its document.
"""
