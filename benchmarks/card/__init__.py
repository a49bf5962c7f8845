"""A quarter of an hour of a Hopper card, prepared: all that only a card can say, in one program."""
