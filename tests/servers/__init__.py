"""Real servers with four workers each, for the tests of several workers behind one port.

`ways` starts them, `work` is what their workers can do, and the other modules are the applications.
"""
