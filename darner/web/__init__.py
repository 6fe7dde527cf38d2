"""The page: servers and their queues in a browser, in a process of its own.

Here is what serves HTTP for people. No command line lives here, and nothing of the server, which is known by
its protocol alone. It stands on `darner.tools` and `darner.client`, and on aiohttp and jinja2 (the extra
`web`).
"""
