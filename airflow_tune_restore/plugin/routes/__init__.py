"""The routes of the page, by subject. Each checks permissions, calls one function, and returns JSON."""
