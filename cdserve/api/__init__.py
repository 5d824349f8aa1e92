"""The wire: request classes, routes, and what the routes need to know of the server."""
