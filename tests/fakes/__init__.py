"""What stands in for the real thing in tests: it is made of files, or answers as the real one does.

Helpers that drive real processes, worlds and machines lie beside the tests: walking, instance, confined, lifecycle,
machine.
"""
