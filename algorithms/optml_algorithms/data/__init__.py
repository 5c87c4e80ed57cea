"""Files of a channel -> arrays. Errors name the file and, where it can be known, the line."""
