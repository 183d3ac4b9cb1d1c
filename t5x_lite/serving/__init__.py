"""A model behind HTTP: concurrent requests share batches (`batching`), `app` is the web server, `page.html` its page.

Needs aiohttp, which the extra `serve` installs.
"""
