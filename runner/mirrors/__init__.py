"""Git mirrors: one bare repository for each that jobs check out, which their checkouts borrow objects from."""
