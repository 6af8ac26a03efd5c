"""The web viewer's server: cases, image tiles, map tiles, findings and reviews. It needs no torch."""
