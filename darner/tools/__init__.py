"""The tools of an operator: what the command line and the page have in common.

Here is what is worked out or done for whoever looks after servers. Nothing here knows a terminal, a page or
the inside of a server: it stands on `darner.client`, `darner.errors` and `darner.printable`.
"""
