"""How many connections to one server a process keeps, and so how many ranges it may ask for at once."""

CONNECTIONS = 256
"""The libraries' own 10 would make other readers wait, or connect anew for each range."""
