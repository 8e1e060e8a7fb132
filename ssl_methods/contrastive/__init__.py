"""Two views of a picture must find each other among others."""
