"""The planted truth: look-alike classes that differ in one known part, and whether the maps find that part."""
