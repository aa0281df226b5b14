"""What people look at: the report, the sheet, the papers' tables."""
