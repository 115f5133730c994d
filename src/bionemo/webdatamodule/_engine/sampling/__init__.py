"""Which sample when, for whom: integers only."""
