"""What a run tells: its summary, the tables of it, the view while it goes on, and the files of its folder."""
