"""Names that users may give, which pages have to show as text."""

EVIL = [
    "<script>alert(1)</script>",
    "$_{",
    "[/red]",
    "\u202eغزال\u202c",
    "</script><b>",
    "{{ 7*7 }}",
    "'\"><img src=x>",
]
