"""The champion's scores of one night, with a band and reasons for each row."""
