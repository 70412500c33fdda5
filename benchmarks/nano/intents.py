"""The table of tools: names, parameters, wordings; each wording may be asked of each spelling of the tool."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """A parameter: its alternative names, its JSON type, and the kind of value it takes."""

    names: tuple[str, ...]
    type: str
    kind: str


@dataclass(frozen=True)
class Intent:
    """One thing a tool can do. `result` is a JSON object with {r}; `answer` tells it in words."""

    group: str
    names: tuple[str, ...]
    description: str
    parameters: tuple[Parameter, ...]
    requests: tuple[str, ...]
    requests_zh: tuple[str, ...] = ()
    result: str = ""
    result_kind: str = ""
    answer: str = ""


def text(*names: str, kind: str) -> Parameter:
    """Return a string parameter."""
    return Parameter(names, "string", kind)


def whole(*names: str, kind: str) -> Parameter:
    """Return an integer parameter."""
    return Parameter(names, "integer", kind)


PLACE = text("city", "city", "location", "place", "town", kind="city")
INTENTS: tuple[Intent, ...] = (
    Intent(
        "weather",
        ("get_weather", "get_weather", "get_current_weather", "weather", "check_weather", "weather_lookup"),
        "Get the weather",
        (PLACE,),
        (
            "What is the weather in {0}?",
            "What's the weather like in {0}?",
            "How is the weather in {0} today?",
            "Weather in {0}, please.",
            "Will it rain in {0}?",
            "Is it sunny in {0}?",
        ),
        ("{0}天气怎么样?", "今天{0}的天气如何?", "{0}的天气"),
        '{"degrees": {r}}',
        "degrees",
        "It is {r} degrees in {0}.",
    ),
    Intent(
        "time",
        ("get_time", "get_current_time", "local_time", "clock"),
        "Get the local time",
        (PLACE,),
        ("What time is it in {0}?", "Tell me the time in {0}.", "What is the local time in {0}?", "Time in {0}?"),
        ("{0}现在几点?", "现在{0}是几点?"),
        '{"time": "{r}"}',
        "clock",
        "It is {r} in {0}.",
    ),
    Intent(
        "arithmetic",
        ("add", "add_numbers", "sum", "plus"),
        "Add two numbers",
        (whole("a", "x", "first", kind="big"), whole("b", "y", "second", kind="big")),
        ("Add {0} and {1}.", "What is {0} + {1}?", "What is {0} plus {1}?", "{0}+{1}=", "Sum {0} and {1}."),
        ("{0}加{1}等于多少?", "计算{0}+{1}。"),
        '{"result": {r}}',
        "big",
        "The result is {r}.",
    ),
    Intent(
        "multiplication",
        ("multiply", "times", "product"),
        "Multiply two numbers",
        (whole("a", "x", "first", kind="big"), whole("b", "y", "second", kind="big")),
        ("Multiply {0} by {1}.", "What is {0} times {1}?", "What is {0} * {1}?"),
        ("{0}乘以{1}等于多少?",),
        '{"result": {r}}',
        "big",
        "The result is {r}.",
    ),
    Intent(
        "formula",
        ("calculate", "calculator", "evaluate"),
        "Evaluate an expression",
        (text("expression", "formula", "input", kind="formula"),),
        ("Calculate {0}.", "Compute {0}.", "Evaluate {0}."),
        ("计算 {0} 。",),
        '{"result": {r}}',
        "big",
        "The result is {r}.",
    ),
    Intent(
        "timer",
        ("set_timer", "start_timer", "timer"),
        "Start a timer",
        (whole("minutes", "duration", "length", kind="small"),),
        (
            "Set a timer for {0} minutes.",
            "Start a timer of {0} minutes.",
            "Timer {0} minutes.",
            "Remind me in {0} minutes.",
        ),
        ("设一个{0}分钟的计时器。",),
        '{"status": "{r}"}',
        "status",
        "The status is {r}.",
    ),
    Intent(
        "alarm",
        ("set_alarm", "alarm", "wake_up"),
        "Set an alarm",
        (text("time", "at", "when", kind="clock"),),
        ("Set an alarm for {0}.", "Wake me up at {0}.", "Alarm at {0}, please."),
        ("{0}叫我起床。",),
        '{"status": "{r}"}',
        "status",
        "The status is {r}.",
    ),
    Intent(
        "message",
        ("send_message", "send_sms", "text_message"),
        "Send a message",
        (text("to", "recipient", "name", kind="person"), text("text", "message", "body", kind="phrase")),
        (
            "Send {0} the message: {1}",
            'Send a message to {0}: "{1}"',
            "Text {0}: {1}",
            "Tell {0} this: {1}",
        ),
        ("给{0}发消息: {1}",),
        '{"status": "{r}"}',
        "status",
        "The status is {r}.",
    ),
    Intent(
        "email",
        ("send_email", "write_email", "email"),
        "Send an email",
        (text("to", "address", "recipient", kind="email"), text("subject", "title", "topic", kind="phrase")),
        ("Write an email to {0} about {1}.", "Email {0} about {1}.", "Send an email to {0}, subject {1}."),
    ),
    Intent(
        "phone",
        ("call_number", "dial", "call_phone"),
        "Call a phone number",
        (text("number", "phone", kind="phone"),),
        ("Call {0}.", "Dial {0}.", "Please call the number {0}."),
        ("请打电话 {0} 。",),
    ),
    Intent(
        "translation",
        ("translate", "translate_text"),
        "Translate a text",
        (text("text", "input", "phrase", kind="phrase"), text("language", "target", "to", kind="language")),
        ('Translate "{0}" to {1}.', 'Translate "{0}" into {1}.', 'How do you say "{0}" in {1}?'),
    ),
    Intent(
        "search",
        ("search", "search_web", "web_search", "lookup"),
        "Search the web",
        (text("query", "q", "text", kind="phrase"),),
        ("Search for {0}.", "Search the web for {0}.", "Look up {0}.", "Find {0} on the web."),
        ("搜索 {0} 。",),
    ),
    Intent(
        "note",
        ("add_note", "create_note", "save_note"),
        "Save a note",
        (text("text", "note", "content", kind="phrase"),),
        ("Make a note: {0}", "Note: {0}", "Write down: {0}", "Save the note {0}."),
        ("记一下: {0}",),
    ),
    Intent(
        "calendar",
        ("create_event", "add_event", "calendar"),
        "Add an event",
        (text("title", "event", "name", kind="phrase"), text("day", "date", kind="day")),
        ("Put {0} in my calendar on {1}.", "Add the event {0} on {1}.", "Plan {0} for {1}."),
    ),
    Intent(
        "light",
        ("set_light", "switch_light", "light"),
        "Switch a light",
        (text("room", "place", kind="room"), text("state", "value", kind="state")),
        ("Turn {1} the light in the {0}.", "Turn the {0} light {1}.", "Switch {1} the {0} light."),
    ),
    Intent(
        "stock",
        ("get_stock_price", "stock_price", "quote"),
        "Get a stock price",
        (text("symbol", "ticker", kind="symbol"),),
        ("What is the stock price of {0}?", "Stock price of {0}?", "How much is {0} stock?"),
        (),
        '{"price": {r}}',
        "big",
        "The price of {0} is {r}.",
    ),
    Intent(
        "currency",
        ("convert_currency", "convert", "exchange"),
        "Convert money",
        (
            whole("amount", "value", kind="big"),
            text("from", "source", kind="currency"),
            text("to", "target", kind="currency"),
        ),
        ("Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?", "Change {0} {1} into {2}."),
        (),
        '{"result": {r}}',
        "big",
        "It is {r} {2}.",
    ),
    Intent(
        "distance",
        ("get_distance", "distance", "route"),
        "Get the distance",
        (text("from", "start", "origin", kind="city"), text("to", "end", "destination", kind="city")),
        ("How far is it from {0} to {1}?", "What is the distance from {0} to {1}?", "Distance from {0} to {1}?"),
        ("从{0}到{1}有多远?",),
        '{"km": {r}}',
        "big",
        "It is {r} km from {0} to {1}.",
    ),
    Intent(
        "table",
        ("book_table", "reserve_table"),
        "Book a table",
        (whole("people", "guests", "seats", kind="small"), text("time", "at", kind="clock")),
        ("Book a table for {0} at {1}.", "Reserve a table for {0} people at {1}.", "I need a table for {0} at {1}."),
    ),
    Intent(
        "music",
        ("play_music", "play_song", "play"),
        "Play a song",
        (text("title", "song", "name", kind="phrase"),),
        ("Play {0}.", "Play the song {0}.", "I want to hear {0}."),
        ("播放 {0} 。",),
    ),
    Intent(
        "order",
        ("get_order", "track_order", "order_status"),
        "Track an order",
        (text("id", "order", "number", kind="code"),),
        ("Where is my order {0}?", "Track order {0}.", "What is the status of order {0}?"),
        ("订单 {0} 在哪里?",),
        '{"status": "{r}"}',
        "status",
        "The status is {r}.",
    ),
    Intent(
        "heating",
        ("set_temperature", "set_thermostat", "heat"),
        "Set the temperature",
        (whole("degrees", "temperature", "value", kind="small"),),
        ("Set the temperature to {0} degrees.", "Heat to {0} degrees.", "Make it {0} degrees in here."),
    ),
    Intent(
        "file",
        ("read_file", "open_file"),
        "Read a file",
        (text("path", "file", "name", kind="path"),),
        ("Read the file {0}.", "Open {0}.", "Show me the file {0}.", "What is in {0}?"),
    ),
    Intent(
        "user",
        ("get_user", "find_user", "user_info"),
        "Get a user",
        (whole("id", "user_id", kind="big"),),
        ("Show user {0}.", "Find the user {0}.", "Who is user {0}?", "Get user number {0}."),
        (),
        '{"name": "{r}"}',
        "person",
        "User {0} is {r}.",
    ),
    Intent(
        "random",
        ("roll_dice", "roll", "random_number"),
        "Roll a die",
        (whole("sides", "max", kind="small"),),
        ("Roll a die with {0} sides.", "Roll a {0} sided die.", "Throw a die with {0} sides."),
        (),
        '{"result": {r}}',
        "small",
        "The result is {r}.",
    ),
)
