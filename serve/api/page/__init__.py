"""The page that people open in a browser: its own files, previews of media, and a browser of the server's stores.

It imports nothing, since decoding processes import `serve.api.page.sketch`.
"""
