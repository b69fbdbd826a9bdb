"""A build on one page: what it lost, what it saved, what it cost."""
