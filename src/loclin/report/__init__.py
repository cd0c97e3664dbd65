"""From sections to one HTML page, its Markdown twin and the terminal. Draws what it is given and
decides nothing: it knows the record, and no study.
"""
