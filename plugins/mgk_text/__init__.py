"""Text, dictionary and multiple-choice data: readers, templates, packing, probes, generated answers."""
