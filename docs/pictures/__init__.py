"""Makes every picture in the repository that shows the bundled model, and its table of figures.

`make pictures` runs it; `__main__` says what there is. One module is one kind of picture.
"""
