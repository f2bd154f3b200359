"""Five notebooks, each of which begins with a question of a researcher and ends with a picture that answers it."""
