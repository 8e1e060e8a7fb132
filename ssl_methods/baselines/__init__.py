"""What self-supervision is compared with: floors that learn nothing or little, and the ceiling that sees labels."""
