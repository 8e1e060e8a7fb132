"""Invented tasks whose labels come for free."""
