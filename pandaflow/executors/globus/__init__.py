"""Jobs on Globus Compute endpoints; needs the extra ``globus`` where the driver runs."""
