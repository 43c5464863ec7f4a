"""What people look at: charts, attention maps, likeness."""
