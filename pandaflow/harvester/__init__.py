"""The harvester: keeps the right number of pilots at each queue of the grid."""
