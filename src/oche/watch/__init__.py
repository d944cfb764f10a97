"""Numbers measured beside a search, and the monitor that reads them."""
