/* SPDX-License-Identifier: Apache-2.0 */
/* Word lists. Every fourth word is held out for --split test, so order matters: a change makes other samples. */
#include "bench/text2json_inside.h"

#define WORDS(name, ...)                                                                            \
    static const char *const name##_list[] = {__VA_ARGS__};                                         \
    const lode_words_t lode_words_##name = {name##_list, sizeof name##_list / sizeof *name##_list}; \
    _Static_assert(sizeof name##_list / sizeof *name##_list % 4 == 0, "every fourth word is held out")

/* clang-format off */
WORDS(brand,
    "Vel", "Torm", "Quin", "Osk", "Brel", "Fenn", "Halv", "Jort", "Krav", "Lumm", "Marl", "Nexb",
    "Pell", "Rovn", "Sild", "Tavr", "Umbr", "Vint", "Wexl", "Yarr", "Zeph", "Aldr", "Bont", "Corv",
    "Drev", "Ekkl", "Falk", "Grov", "Hesp", "Ivarn", "Jast", "Keld", "Lorv", "Mend", "Norv", "Ordl",
    "Plesk", "Rask", "Stov", "Trell", "Ulm", "Vasp", "Wend", "Yolt", "Zand", "Ashv", "Brin", "Clov");
WORDS(brand_end,
    "ora", "ex", "ik", "ano", "ium", "ett", "ado", "en", "is", "ova", "ell", "on",
    "ara", "ent", "ura", "ow", "ine", "ax", "era", "ust", "imo", "ond", "ily", "asta");
WORDS(surname,
    "Osk", "Harr", "Lind", "Marv", "Bram", "Tarn", "Vell", "Kest", "Dorn", "Fairh", "Gress", "Hollow",
    "Ives", "Jarn", "Kirk", "Lang", "Mell", "Nord", "Orm", "Pend", "Quill", "Ravens", "Stan", "Thorn",
    "Ulver", "Vant", "Wester", "Yard", "Zell", "Ald", "Birk", "Cran", "Dun", "Ell", "Fen", "Gold",
    "Hart", "Ing", "Jess", "Kell", "Lock", "Mor", "Nett", "Over", "Pas", "Rook", "Sel", "Tres");
WORDS(surname_end,
    "eldt", "mont", "wick", "gren", "sen", "berry", "ford", "ano", "ley", "mere", "ström", "worth",
    "ova", "acre", "stone", "field", "ova-Reyes", "quist", "ard", "ström-Vale", "bury", "well", "hagen", "ison");
WORDS(place,
    "Elm", "Harrow", "Tarn", "Brack", "Cold", "Dray", "Ever", "Fox", "Glen", "High", "Iron", "Juniper",
    "Kings", "Lark", "Mill", "Nether", "Oaken", "Pine", "Quarry", "Reed", "Silver", "Thistle", "Upper", "Vine",
    "Willow", "Yew", "Amber", "Birch", "Crow", "Deep", "Ember", "Fern", "Grey", "Hazel", "Ivy", "Jade",
    "Kestrel", "Linden", "Moss", "North", "Otter", "Plum", "Raven", "Sand", "Tide", "Under", "Vale", "Wolf");
WORDS(place_end,
    "ford", "gate", "wick", "ham", "mouth", "bridge", "haven", "stead", "combe", "ton", "dale", "minster",
    "brook", "hollow", "fell", "port");
WORDS(first_name,
    "Maren", "Tobias", "Ilse", "Rafael", "Odette", "Casper", "Nadia", "Emil", "Priya", "Lucian", "Freya", "Anselm",
    "Beatriz", "Kofi", "Selma", "Ivo", "Harriet", "Dmitri", "Amara", "Jonas", "Leila", "Oskar", "Ines", "Matteo",
    "Greta", "Samir", "Thea", "Viktor", "Yuki", "Alba", "Bertrand", "Celia", "Dorian", "Elena", "Farid", "Gwen",
    "Hugo", "Irene", "Julian", "Katya", "Laszlo", "Mina", "Noel", "Olga", "Pavel", "Renata", "Soren", "Tamsin",
    "Ulrich", "Vera", "Wendel", "Xenia", "Yves", "Zara", "Aurel", "Bruna", "Cyril", "Delia", "Edwin", "Flora",
    "Gideon", "Hana", "Ismail", "Judith");
WORDS(product,
    "cordless drill", "rice cooker", "desk lamp", "electric kettle", "standing fan", "robot vacuum cleaner",
    "camping stove", "film camera", "wall clock", "coffee grinder", "bicycle helmet", "portable speaker",
    "garden hose reel", "air purifier", "sewing machine", "label printer", "hiking backpack", "electric shaver",
    "baby monitor", "stand mixer", "folding kayak", "pocket telescope", "yoga mat", "pressure washer",
    "suitcase", "toaster", "document scanner", "fountain pen", "dehumidifier", "rowing machine",
    "weather station", "car jump starter");
WORDS(speciality,
    "cardiologist", "dermatologist", "neurologist", "paediatrician", "rheumatologist", "urologist",
    "ophthalmologist", "allergist", "haematologist", "radiologist", "psychiatrist", "nephrologist",
    "gastroenterologist", "endocrinologist", "orthopaedic surgeon", "pulmonologist", "anaesthetist",
    "geriatrician", "pathologist", "vascular surgeon", "sports physician", "sleep specialist",
    "general practitioner", "plastic surgeon");
WORDS(organisation,
    "seed bank", "lighthouse trust", "language school", "bird sanctuary", "choir association", "housing cooperative",
    "food bank", "mountain rescue service", "repair workshop", "film archive", "cycling federation",
    "literacy charity", "river conservation group", "youth orchestra", "credit union", "marine research institute",
    "folk museum", "animal shelter", "dairy cooperative", "astronomy society", "legal aid centre",
    "theatre company", "tree planting network", "chess club");
WORDS(genre,
    "heist film", "courtroom drama", "road movie", "ghost story", "romantic comedy", "spy thriller",
    "western", "musical", "war drama", "science fiction film", "silent film", "family adventure",
    "political satire", "nature documentary", "boxing film", "detective film", "costume drama", "disaster film",
    "coming-of-age film", "animated fairy tale", "chess drama", "prison film", "mountain film", "vampire film");
WORDS(country,
    "Portugal", "Vietnam", "Denmark", "Mexico", "Poland", "Japan", "Turkey", "Canada", "Slovenia", "Brazil",
    "Ireland", "Thailand", "Estonia", "Morocco", "Chile", "Norway", "Croatia", "India", "Uruguay", "Finland",
    "Taiwan", "Kenya", "Austria", "Peru", "Greece", "Latvia", "Iceland", "Malaysia", "Hungary", "Colombia",
    "Sweden", "Georgia");
WORDS(colour,
    "moss green", "slate grey", "brick red", "pearl white", "navy blue", "sand beige", "matt black", "copper",
    "mustard yellow", "ivory", "plum", "teal", "charcoal", "rust orange", "sky blue", "bottle green",
    "dusty pink", "silver", "burgundy", "olive", "cream", "cobalt blue", "graphite", "coral");
WORDS(material,
    "brushed aluminium", "recycled plastic", "stainless steel", "bamboo", "carbon fibre", "cast iron",
    "tempered glass", "beech wood", "ceramic", "magnesium alloy", "waxed canvas", "titanium",
    "oak veneer", "fibreglass", "nylon", "anodised steel", "cork", "enamelled steel", "polycarbonate", "walnut wood",
    "brass", "silicone", "zinc alloy", "birch plywood");
WORDS(language,
    "Portuguese", "Mandarin", "Arabic", "Polish", "Hindi", "Turkish", "Swahili", "Greek", "Vietnamese", "Danish",
    "Korean", "Russian", "Tamil", "Italian", "Persian", "Hungarian", "Catalan", "Bengali", "Welsh", "Finnish");
WORDS(film_noun,
    "Lantern", "Harbour", "Orchard", "Compass", "Winter", "Bridge", "Letter", "Garden", "Cathedral", "Horseman",
    "Clockmaker", "Island", "Violin", "Stranger", "Ferry", "Mirror", "Shepherd", "Carnival", "Tower", "Photograph",
    "Promise", "Railway", "Whistle", "Kingdom", "Witness", "Storm", "Widow", "Staircase", "Falcon", "Dancer",
    "Archive", "Frontier", "Passenger", "Candle", "Vineyard", "Hunter", "Gambler", "Sailor", "Balcony", "Desert");
WORDS(adjective,
    "Last", "Quiet", "Broken", "Golden", "Forgotten", "Silent", "Distant", "Paper", "Burning", "Hidden",
    "Crooked", "Frozen", "Second", "Wandering", "Blue", "Empty", "Restless", "Borrowed", "Hollow", "Midnight",
    "Stolen", "Gentle", "Northern", "Unfinished");
WORDS(aim,
    "Foundation", "Institute", "Trust", "Society", "Alliance", "Collective", "Association", "Centre",
    "League", "Network", "Union", "Initiative");
WORDS(key_word,
    "lantern", "marble", "thimble", "copper", "walnut", "feather", "anchor", "saffron", "pebble", "velvet",
    "juniper", "button", "ribbon", "compass", "pepper", "candle", "acorn", "bucket", "violet", "magnet",
    "pocket", "sparrow", "barrel", "needle", "meadow", "hammer", "ginger", "pigeon", "cobalt", "tunnel",
    "raisin", "whistle", "blanket", "canyon", "domino", "saddle", "turnip", "wicker", "zipper", "orchid");
/* clang-format on */
