"""What all stages share: settings, fingerprints, files, progress."""
