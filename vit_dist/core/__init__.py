"""What every other room stands on: errors, units, seeding, files, world, logging. No torch."""
