"""The wording of the embedded suites: scenes whose sentences each have several phrasings.

A scene is one story. A question takes one phrasing of each of its sentences, so a scene with sentences of 3, 2, 2 and 2
phrasings is 24 templates. The labels name the lines of the worked solution. ``{name}`` and ``{item}`` are drawn from the
lists below; ``{a}`` to ``{e}`` are the numbers of the suite's plan. Numbers live in ``suites.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

NAMES = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jon", "Kim", "Leo", "Mia", "Nora", "Omar", "Pia")
ITEMS = ("shells", "stamps", "coins", "cards", "marbles", "beads", "pins", "stickers", "buttons", "badges")


@dataclass(frozen=True, slots=True)
class Scene:
    """One story: alternatives for each sentence of the question, and a label for each step of the solution."""

    sentences: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]


SCENES: dict[str, tuple[Scene, ...]] = {
    "savings": (
        Scene((
            ("{name} has {a} {item}.", "{name} owns {a} {item}.", "There are {a} {item} in the box of {name}."),
            ("A friend gives {b} more.", "Then {b} more arrive.", "{name} finds {b} more."),
            ("Later {c} are lost.", "Then {name} gives away {c}.", "After that {c} are sold."),
            ("On Monday {d} are added.", "{name} then buys {d}."),
            ("In the end {e} break.", "At last {e} are given to a child."),
            ("How many {item} are left?", "How many {item} does {name} have now?"),
        ), ("The {item} with the new ones", "The {item} after the loss", "The {item} after the next gain", "The {item} left")),
        Scene((
            ("A bus leaves with {a} people.", "At the first stop a bus holds {a} people.", "{name} drives a bus with {a} people."),
            ("At the next stop {b} get on.", "Then {b} people get on."),
            ("At the school {c} get off.", "Then {c} people leave."),
            ("At the park {d} get on.", "After that {d} more come in."),
            ("At the bridge {e} get off.", "Near the end {e} people leave."),
            ("How many people are on the bus?", "How many people are left on the bus?", "How many people ride on?"),
        ), ("People after the first stop", "People after the school", "People after the park", "People left on the bus")),
    ),
    "shopping": (
        Scene((
            ("{name} buys {a} bags with {b} {item} each.", "{name} fills {a} bags with {b} {item} each.", "There are {a} bags of {b} {item}."),
            ("There are also {c} boxes of {d} {item}.", "{name} also takes {c} boxes with {d} {item} each."),
            ("Another {e} {item} lie loose.", "{e} more {item} are in a drawer.", "A friend adds {e} {item}."),
            ("How many {item} are there in all?", "How many {item} does {name} have?", "Find the number of {item}."),
        ), ("The {item} in bags", "The {item} in boxes", "The {item} in bags and boxes", "All {item} together")),
        Scene((
            ("A ticket costs {a} coins and {name} buys {b}.", "{name} pays {a} coins for each ticket and takes {b} tickets."),
            ("A drink costs {c} coins and {name} buys {d}.", "Drinks are {c} coins each and {name} takes {d}."),
            ("The bus costs {e} coins.", "The way home costs {e} coins.", "{name} also pays {e} coins for a map."),
            ("What does {name} pay?", "How many coins does {name} spend?", "Find the whole cost."),
        ), ("The cost of the tickets", "The cost of the drinks", "Tickets and drinks", "The whole cost in coins")),
    ),
    "sharing": (
        Scene((
            ("{name} has {a} {item} and finds {b} more.", "{name} picks up {a} {item} and then {b} more.", "A box holds {a} {item} and a bag holds {b}."),
            ("All are shared by {c} children.", "They are split among {c} children.", "{c} children share them."),
            ("{d} of the children put their parts together.", "The parts of {d} children go into a jar."),
            ("The jar already holds {e}.", "Then {e} more are added."),
            ("How many {item} are in the jar?", "How many {item} does the jar hold?"),
        ), ("All {item} to share", "The part of one child", "The parts in the jar", "The {item} in the jar")),
        Scene((
            ("A team runs {a} miles and then {b} miles.", "{name} walks {a} miles by day and {b} miles by night.", "A rider does {a} miles and {b} miles."),
            ("This takes {c} days.", "The trip lasts {c} days.", "It is done in {c} days."),
            ("At the same speed the next part takes {d} days.", "Then come {d} more days at the same speed."),
            ("The last part is {e} miles.", "After that {e} miles remain."),
            ("How long is the way after the first trip?", "How many miles come after the first trip?"),
        ), ("The first trip in miles", "The miles of one day", "The miles of the next part", "The miles after the first trip")),
    ),
    "bakery": (
        Scene((
            ("A baker makes {a} dark and {b} white loaves each day.", "Each day {name} bakes {a} dark loaves and {b} white ones."),
            ("This goes on for {c} days.", "{name} works for {c} days.", "The shop is open for {c} days."),
            ("Another {e} loaves come from a friend.", "A friend brings {e} more.", "{e} loaves were there before."),
            ("How many loaves are there?", "Find the number of loaves.", "How many loaves are there in all?"),
        ), ("The loaves of one day", "The loaves of all days", "All loaves together")),
        Scene((
            ("A train has {a} seats below and {b} seats above in each car.", "Each car of a train has {a} low and {b} high seats."),
            ("There are {c} cars.", "The train pulls {c} cars.", "{name} counts {c} cars."),
            ("The engine has {e} seats.", "{e} more seats are in the engine."),
            ("How many seats are there?", "Find the number of seats.", "How many seats does the train have?"),
        ), ("The seats of one car", "The seats of all cars", "All seats together")),
    ),
    "tiles": (
        Scene((
            ("A row has {a} red and {b} blue tiles.", "{name} lays a row of {a} red and {b} blue tiles.", "In each row there are {a} red and {b} blue tiles."),
            ("From each row {c} tiles are taken.", "Then {c} tiles of each row break.", "{name} takes {c} tiles out of each row."),
            ("A wall has {d} parts of {e} rows.", "The floor has {d} rooms with {e} rows each.", "There are {d} rooms of {e} rows."),
            ("How many tiles are there?", "Find the number of tiles.", "How many tiles are left in all?"),
        ), ("The tiles of a full row", "The tiles left in a row", "The number of rows", "All tiles together")),
        Scene((
            ("A page shows {a} old and {b} new {item}.", "{name} puts {a} old and {b} new {item} on each page.", "Each page holds {a} old and {b} new {item}."),
            ("On each page {c} fall off.", "Then {c} are taken from each page."),
            ("There are {d} books with {e} pages.", "{name} has {d} books of {e} pages.", "This fills {d} books of {e} pages each."),
            ("How many {item} are there?", "How many {item} does {name} have?"),
        ), ("The {item} of a full page", "The {item} left on a page", "The number of pages", "All {item} together")),
    ),
    "convoy": (
        Scene((
            ("A truck has {a} low and {b} high shelves.", "{name} fills a truck with {a} low and {b} high shelves."),
            ("It carries {d} boxes, the same on each shelf.", "The {d} boxes are spread evenly over the shelves.", "On the shelves {d} boxes are shared evenly."),
            ("Then {c} boxes are added to the first shelf.", "The first shelf gets {c} more.", "{name} puts {c} more on the first shelf."),
            ("At night {e} more follow there.", "After that it gets {e} more."),
            ("How many boxes are on the first shelf?", "Find the number of boxes on the first shelf."),
        ), ("The number of shelves", "The boxes on one shelf", "The first shelf with more boxes", "The first shelf at the end")),
        Scene((
            ("A club has {a} girls and {b} boys.", "{name} leads a club of {a} girls and {b} boys.", "There are {a} girls and {b} boys in a club."),
            ("They share {d} {item} evenly.", "All {d} {item} are split evenly among them."),
            ("{name} gets {c} more as a prize.", "For good work {name} gets {c} more.", "A friend gives {name} {c} more."),
            ("{name} had {e} before.", "At home {name} has {e}."),
            ("How many {item} does {name} have?", "Find the number of {item} of {name}."),
        ), ("The number of children", "The part of one child", "The part with the new ones", "The {item} of {name}")),
    ),
    "depot": (
        Scene((
            ("A store holds {a} shelves of {b} boxes.", "{name} fills {a} shelves with {b} boxes each.", "In a store there are {a} shelves with {b} boxes each."),
            ("A truck brings {c} boxes and then {d} more.", "Then {c} and {d} more boxes come.", "Later {c} boxes and {d} boxes arrive."),
            ("A box weighs 10 pounds.", "Each box has a weight of 10 pounds.", "All boxes weigh 10 pounds each."),
            ("How many pounds are in the store?", "Find the weight of all boxes.", "What is the weight of all boxes in pounds?"),
        ), ("The boxes on the shelves", "The new boxes", "All boxes together", "The weight of all boxes")),
        Scene((
            ("A school buys {a} packs of {b} {item}.", "{name} orders {a} packs of {b} {item}.", "There are {a} packs with {b} {item} each."),
            ("One class has {c} more and another has {d}.", "Two friends add {c} and {d} more."),
            ("All of these cost 10 coins each.", "Each one costs 10 coins.", "The price of each is 10 coins."),
            ("What are all the {item} worth?", "How many coins do all {item} cost?"),
        ), ("The {item} in packs", "The other {item}", "All {item} together", "The coins for all {item}")),
    ),
    "harvest": (
        Scene((
            ("An apple farm has {a} young and {b} old trees.", "{name} owns {a} young and {b} old trees.", "On a farm stand {a} young and {b} old trees."),
            ("Each tree gives {c} apples but {d} are bad.", "Of the {c} apples on each tree {d} are lost.", "Each tree has {c} apples and {d} of them fall."),
            ("An apple costs 10 coins.", "{name} sells each good apple for 10 coins.", "Each good apple brings 10 coins."),
            ("How many coins does the farm make?", "What are the good apples worth?", "How many coins come in?"),
        ), ("The number of trees", "The good apples of one tree", "All good apples", "The coins for all apples")),
        Scene((
            ("A hall has {a} rows in front and {b} rows behind.", "In a hall there are {a} rows in front and {b} rows behind.", "{name} plans a hall of {a} front and {b} back rows."),
            ("Each row has {c} seats and {d} of them are closed.", "Of the {c} seats in a row {d} stay free."),
            ("A seat costs 10 coins.", "{name} asks 10 coins for a seat.", "Each guest pays 10 coins."),
            ("How many coins does a full hall bring?", "What does the hall bring?", "How many coins come in?"),
        ), ("The number of rows", "The used seats of one row", "All used seats", "The coins for all seats")),
    ),
    "galaxy": (
        Scene((
            ("A fleet has {a} fast and {b} slow ships.", "{name} sees {a} fast and {b} slow ships.", "There are {a} fast and {b} slow ships."),
            ("The first ship visits {c} stars with {d} rocks each.", "The first of them counts {c} stars of {d} rocks.", "One of them finds {c} stars and {d} rocks at each."),
            ("Each rock weighs 10 tons.", "A rock has 10 tons.", "Every rock is 10 tons."),
            ("How many tons did the ship find?", "How many tons are the rocks?", "Find the tons of all rocks."),
        ), ("The number of ships", "All rocks together", "The tons of all rocks")),
        Scene((
            ("A library has {a} long and {b} short halls.", "{name} walks through {a} long and {b} short halls.", "In a library are {a} long and {b} short halls."),
            ("In the first hall {c} shelves hold {d} books each.", "The first hall has {c} shelves of {d} books.", "There are {c} shelves with {d} books in the first hall."),
            ("A book has 10 pictures.", "Each book shows 10 pictures."),
            ("How many pictures are in the first hall?", "Find the number of pictures in the first hall."),
        ), ("The number of halls", "The books of the first hall", "The pictures of the first hall")),
    ),
    # Each scene of these two has a cue that the student's textbook reads wrongly; their numbers are in suites.py.
    "measures": (
        Scene((
            ("{name} buys {a} dozen eggs.", "There are {a} dozen eggs in a shop.", "A cook needs {a} dozen eggs."),
            ("Then {b} of them break.", "{name} drops {b} of them.", "But {b} are bad."),
            ("A friend brings {c} more.", "Later {c} eggs are added.", "{c} more are on the shelf."),
            ("How many eggs are there?", "Find the number of eggs.", "How many eggs does that make in all?"),
        ), ("The eggs in dozens", "The eggs that are good", "All eggs together")),
        Scene((
            ("{name} walks for {a} weeks.", "A trip lasts {a} weeks.", "A team works for {a} weeks."),
            ("On {b} days it rains and nothing is done.", "But {b} days are lost.", "Of these {b} days are free."),
            ("Then {c} days are added.", "After that come {c} more days."),
            ("How many days is that?", "Find the number of days.", "How many days are used in all?"),
        ), ("The days in weeks", "The days that are used", "All days together")),
        Scene((
            ("A shop is open for {a} whole days.", "{name} works on a ship for {a} whole days.", "A train runs for {a} whole days."),
            ("It rests for {b} hours.", "But {b} hours are lost.", "Of these {b} hours are free."),
            ("Then {c} hours are added.", "After that come {c} more hours."),
            ("How many hours is that?", "Find the number of hours.", "How many hours are used in all?"),
        ), ("The hours in days", "The hours that are used", "All hours together")),
        Scene((
            ("A path is {a} yards long.", "{name} has {a} yards of paper.", "A wall is {a} yards long."),
            ("Of this {b} inches are lost.", "Then {b} inches are taken.", "But {b} inches break."),
            ("A part of {c} inches is added.", "Later {c} inches more come to it."),
            ("How many inches is that?", "Find the length in inches.", "How many inches are left?"),
        ), ("The inches in yards", "The inches that are left", "All inches together")),
    ),
    "plots": (
        Scene((
            ("A square field has a side of {a} feet.", "{name} owns a square field with a side of {a} feet.", "The side of a square field is {a} feet."),
            ("A path beside it has an area of {c} square feet.", "The area of the path is {c} square feet."),
            ("A yard adds {d} square feet.", "Then {d} square feet are added."),
            ("What is the whole area?", "Find the whole area in square feet."),
        ), ("The area of the field", "The area with the path", "The whole area")),
        Scene((
            ("A floor is {a} by {b} feet.", "{name} lays a floor of {a} by {b} feet.", "The floor of a hall is {a} by {b} feet."),
            ("The next room has {c} square feet.", "A room beside it has an area of {c} square feet."),
            ("The next shop adds {d} square feet.", "A hall adds {d} square feet."),
            ("What is the whole area?", "Find the whole area in square feet."),
        ), ("The area of the floor", "The area of both rooms", "The whole area")),
        Scene((
            ("In a shop {a} men get {b} coins apiece.", "{name} gives {a} children {b} coins apiece.", "On a ship {a} men get {b} coins apiece."),
            ("A guest gets {c} coins.", "{c} more coins go to a friend."),
            ("Then {d} more coins are spent.", "Another friend gets {d} coins."),
            ("How many coins were paid?", "Find the number of coins that were paid."),
        ), ("The coins of the group", "The coins with the guest", "The coins paid")),
        Scene((
            ("{name} has {a} {item} and a friend has {b} times as many.", "A box holds {a} {item} and a bag holds {b} times as many."),
            ("A child adds {c} {item} to the larger part.", "Then the larger part gets {c} more {item}."),
            ("After that {d} more come in.", "Later it gets {d} more."),
            ("How many {item} are in the larger part?", "Find the number of {item} in the larger part."),
        ), ("The larger part", "The larger part with the new ones", "The larger part at the end")),
    ),
}
