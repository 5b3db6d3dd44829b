"""What images and texts of one's own have in common: what lies at a path, tables, columns, class folders."""
