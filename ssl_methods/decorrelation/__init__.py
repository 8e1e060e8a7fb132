"""Two views must agree, and the features may be neither constant nor copies of one another."""
