"""What is rendered where the user brings no prompts: the first few to measure on, those behind them to verify on."""

from __future__ import annotations

POCKET = (
    "the baby penguin is walking left in the ocean",
    "one panda rises into the air",
    "car is bouncing at night",
    "one small panda surfing in the city",
    "the dog is moving right",
    "one kitty floating up at sea",
    "a froggy on a surfboard, in the woods",
    "a party balloon hopping on the ocean",
    "an android floating under the stars",
    "a cat moving left in the moonlight",
    "a car is jumping in nature",
    "one little penguin surfing a wave on the sea",
)

WAN = (
    "A red fox trots through fresh snow at the edge of a birch forest, its breath steaming in the cold morning light",
    "Slow aerial shot over terraced rice fields after rain, clouds drifting between the hills, sun breaking through",
    "A street musician plays the violin under an arcade at night, rain on the cobbles, people pass with umbrellas",
    "Close-up of hands shaping a tall vase on a potter's wheel, wet clay turning, warm workshop light",
    "Two sailing boats race past a lighthouse in a storm, waves break over the rocks, spray in the wind",
    "A toddler in a yellow raincoat jumps into a puddle and laughs, the camera low and close, shallow depth of field",
    "A steam train crosses a stone viaduct in autumn, the camera follows from the side, leaves whirl in its wake",
    "A hummingbird hovers at a hibiscus flower, wings a blur, dew on the petals, macro shot",
    "Neon signs reflected in a wet city street, a cyclist rides through, steam rises from a grate",
    "An old sculptor walks around a half-finished marble lion in a sunlit courtyard, dust hanging in the air",
    "Paper lanterns rise over a river at dusk, faces in a small boat look up, the water mirrors the lights",
    "A robot arm in a bakery decorates a cake with blue icing, the camera circles slowly around it",
)
