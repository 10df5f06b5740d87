"""Results for people: tables on the terminal, pictures, one self-contained page.

Everything here is made from the JSON of results, so that a page can be made of any stored run.
"""
