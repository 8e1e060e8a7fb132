"""What several data sets read or make alike: folders and archives, text, captions, sound, Atari's emulator."""
