"""The medium of a request: an item of a store, or a file that is sent, fetched, or below an allowed folder."""
