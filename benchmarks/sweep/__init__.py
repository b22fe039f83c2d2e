"""What coverage.py does to one model of each family, in processes of their own."""
