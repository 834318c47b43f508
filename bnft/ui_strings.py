"""Every sentence of the chat that a visitor can see, in Bengali and in English.

Knows nothing about where a sentence is shown. Names of keys, not sentences, stand in the rest of the program.
"""

from __future__ import annotations

LANGUAGES = {"bn": "বাংলা", "en": "English"}
_BENGALI_DIGITS = str.maketrans("0123456789", "০১২৩৪৫৬৭৮৯")
_LATIN_DIGITS = {bengali: ord(latin) for latin, bengali in zip("0123456789", _BENGALI_DIGITS.values(), strict=True)}

# key: (Bengali, English)
_STRINGS: dict[str, tuple[str, str]] = {
    # the head of the page
    "title": ("মনের কথা", "Moner Kotha"),
    "tagline": ("মন খুলে বলুন, আমি শুনছি।", "Say what is on your mind. I am listening."),
    "notice": (
        "এটি একটি কম্পিউটার প্রোগ্রাম; মানুষ, চিকিৎসক বা পরামর্শদাতা নয়। এর কথায় ভুল থাকতে পারে।",
        "This is a computer program, not a person, a doctor or a counsellor. It can be wrong.",
    ),
    "help_title": ("জরুরি সাহায্য", "Urgent help"),
    "help_call": ("{name}: {number} নম্বরে ফোন করুন ({hours})", "Call {name} on {number} ({hours})"),
    # the conversation
    "chat": ("কথোপকথন", "Conversation"),
    "tuned_chat": ("প্রশিক্ষিত মডেল", "Tuned model"),
    "base_chat": ("মূল মডেল (প্রশিক্ষণের আগে)", "Base model (before training)"),
    "empty_chat": (
        "যা মনে আসে, লিখুন। ছোট-বড় কোনো কথাই ফেলনা নয়।",
        "Write whatever comes to mind. Nothing is too small to say.",
    ),
    "message": ("আপনার কথা", "Your message"),
    "message_hint": ("এখানে বাংলায় লিখুন…", "Write here…"),
    "send": ("পাঠান", "Send"),
    "copy": ("কপি করুন", "Copy"),
    "copied": ("কপি হয়েছে", "Copied"),
    "edit": ("বদলে লিখুন", "Edit"),
    "cancel": ("থাক", "Cancel"),
    "you_said": ("আপনি: ", "You: "),
    "it_said": ("উত্তর: ", "Reply: "),
    "stop": ("থামান", "Stop"),
    "retry": ("আবার উত্তর দিন", "Answer again"),
    "undo": ("ফিরিয়ে নিন", "Take back"),
    "clear": ("সব মুছুন", "Clear all"),
    "example_1": ("মনটা আজ খুব ভারী লাগছে", "My heart feels heavy today"),
    "example_2": ("নতুন শহরে এসে বড্ড একা লাগে", "I feel lonely in this new city"),
    "example_3": ("পরীক্ষা খারাপ হয়েছে, বাড়িতে কী বলব?", "My exam went badly. What do I tell my family?"),
    "example_4": ("আজ একটা ভালো খবর পেয়েছি!", "I got some good news today!"),
    # what goes on
    "waiting": (
        "আপনার আগে {people} জন আছেন। একটু অপেক্ষা করুন, পালা এলেই উত্তর আসবে।",
        "{people} ahead of you. Please wait a moment, your turn will come.",
    ),
    "thinking": ("ভেবে লিখছি…", "Thinking…"),
    "thinking_base": ("এবার মূল মডেল লিখছে…", "Now the base model writes…"),
    "cut_off": (
        "উত্তরটি দৈর্ঘ্যের সীমায় এসে থেমেছে। “আরও সেটিংস” থেকে সীমা বাড়ানো যায়।",
        "The reply ended at its length limit. “More settings” can raise it.",
    ),
    "was_stopped": ("উত্তর থামানো হয়েছে।", "The reply was stopped."),
    "cleared": ("সব মুছে ফেলা হয়েছে। নতুন করে শুরু করতে পারেন।", "Everything is cleared. You can start afresh."),
    # kind answers in place of a reply
    "say_something": (
        "মনে হচ্ছে লেখাটা ফাঁকা এসেছে। মনে যা আছে, একটু লিখে পাঠাবেন?",
        "The message arrived empty. Would you write what is on your mind?",
    ),
    "too_long": (
        "অনেকটা লিখেছেন, কিন্তু একবারে এতটা আমি পড়তে পারি না। সবচেয়ে জরুরি অংশটা {limit} অক্ষরের মধ্যে পাঠাবেন?",
        "You wrote a lot, and I cannot read that much at once. Would you send the most important part, "
        "in at most {limit} characters?",
    ),
    "busy": (
        "এই মুহূর্তে অনেকে কথা বলছেন, তাই এখনই উত্তর দিতে পারছি না। কয়েক মিনিট পরে আবার লিখবেন?",
        "Many people are talking right now and I cannot answer yet. Would you try again in a few minutes?",
    ),
    "failed": (
        "দুঃখিত, আমার এখানে একটা গোলমাল হয়েছে, তাই উত্তরটা দিতে পারলাম না। এতে আপনার কোনো দোষ নেই। একটু পরে “আবার উত্তর দিন” চাপুন।",
        "I am sorry, something went wrong on my side and I could not answer. It is not your fault. "
        "Please press “Answer again” in a moment.",
    ),
    "out_of_memory": (
        "দুঃখিত, যন্ত্রটার ওপর এখন খুব চাপ, তাই উত্তরটা শেষ করতে পারলাম না। একটু পরে আবার চেষ্টা করুন, নয়তো ছোট করে লিখুন।",
        "I am sorry, the machine is under heavy load and I could not finish. Please try again in a moment, "
        "or write a shorter message.",
    ),
    "unreachable": (
        "দুঃখিত, যে মডেলটি উত্তর লেখে, তার সঙ্গে এখন যোগাযোগ করা যাচ্ছে না। একটু পরে আবার চেষ্টা করুন।",
        "I am sorry, the model cannot be reached right now. Please try again in a moment.",
    ),
    # settings
    "settings": ("আরও সেটিংস", "More settings"),
    "temperature": ("বৈচিত্র্য", "Temperature"),
    "temperature_info": ("কম হলে উত্তর সংযত, বেশি হলে বৈচিত্র্যময়", "Lower is steadier, higher is freer"),
    "top_p": ("শব্দ বাছাইয়ের পরিসর (top-p)", "Breadth of word choice (top-p)"),
    "top_p_info": ("কম হলে শুধু সবচেয়ে সম্ভাব্য শব্দ", "Lower keeps to the likeliest words"),
    "reply_length": ("উত্তরের সর্বোচ্চ দৈর্ঘ্য (টোকেন)", "Longest reply (tokens)"),
    "reply_length_info": ("বেশি হলে উত্তর আসতে সময় লাগে", "Longer replies take more time"),
    "country": ("আপনি কোথায় আছেন?", "Where are you?"),
    "country_info": ("সেই অনুযায়ী সাহায্যের নম্বর দেখানো হয়", "Decides which help lines are shown"),
    "country_none": ("বলতে চাই না", "I would rather not say"),
    "country_BD": ("বাংলাদেশ", "Bangladesh"),
    "country_IN": ("ভারত", "India"),
    "compare": ("পাশে মূল মডেলের উত্তরও দেখান", "Show the base model's reply beside it"),
    "compare_info": (
        "প্রশিক্ষণে কী বদলেছে, পাশাপাশি মিলিয়ে দেখা যায়। উত্তর আসতে দ্বিগুণ সময় লাগে।",
        "Shows what training changed. Takes twice as long.",
    ),
    # feedback
    "feedback": ("উত্তর কেমন লাগল?", "How was the reply?"),
    "consent": (
        "আমার মতামত আর তার সঙ্গের কথোপকথন মডেলটি আরও ভালো করার কাজে রাখতে সম্মতি দিচ্ছি",
        "I agree that my rating and the conversation it belongs to are kept to improve the model",
    ),
    "consent_info": (
        "সম্মতি না দিলে সার্ভারে কিছুই রাখা হয় না। নাম, ফোন নম্বর বা ঠিকানা লিখবেন না।",
        "Without consent nothing is kept on the server. Please leave out names, phone numbers and addresses.",
    ),
    "good": ("ভালো লেগেছে", "Good reply"),
    "bad": ("ভালো লাগেনি", "Poor reply"),
    "better": ("এর চেয়ে ভালো উত্তর কী হতে পারত?", "What would have been a better reply?"),
    "better_hint": (
        "শেষ উত্তরটি নিজের মতো করে শুধরে লিখুন…",
        "Rewrite the last reply the way it should have been…",
    ),
    "send_better": ("এই উত্তরটি পাঠান", "Send this reply"),
    "feedback_needs_consent": (
        "কিছু রাখা হয়নি। রাখতে চাইলে আগে “উত্তর কেমন লাগল?” অংশে সম্মতি দিন।",
        "Nothing was kept. To have it kept, give consent first under “How was the reply?”.",
    ),
    "feedback_nothing": ("মূল্যায়ন করার মতো কোনো উত্তর এখনো নেই।", "There is no reply to rate yet."),
    "feedback_same": ("উত্তরটি তো একই আছে। একটু বদলে লিখে পাঠান।", "That is the same reply. Please change it first."),
    "feedback_private": (
        "এই কথোপকথনটি খুব ব্যক্তিগত, তাই এর কিছুই রাখা হলো না।",
        "This conversation is very personal, so nothing of it was kept.",
    ),
    "feedback_failed": ("দুঃখিত, এখন রাখা গেল না।", "Sorry, it could not be kept just now."),
    "thanks": ("ধন্যবাদ! আপনার মতামত রাখা হয়েছে।", "Thank you! Your feedback was kept."),
    # about
    "model": ("মডেল", "Model"),
    "base_model": ("মূল মডেল", "Base model"),
    "licence": ("লাইসেন্স", "Licence"),
    "licence_gemma": (
        "Gemma Terms of Use (ai.google.dev/gemma/terms)",
        "Gemma Terms of Use (ai.google.dev/gemma/terms)",
    ),
    "licence_llama3.1": (
        "Built with Llama · Llama 3.1 Community License",
        "Built with Llama · Llama 3.1 Community License",
    ),
    "licence_unknown": ("জানা নেই", "not known"),
    "numbers": ("মাপা ফল", "Measured"),
    "numbers_rows": ("{rows}টি উত্তরে", "{rows} replies"),
    "numbers_of": (
        "প্রশিক্ষণের আগে → পরে, মডেলের না-দেখা কথোপকথনে",
        "before → after training, on conversations that the model has never seen",
    ),
    "untrained": (
        "এটি এখনো সহমর্মী কথোপকথনে প্রশিক্ষিত নয়। প্রশিক্ষণ দিতে চালান:",
        "This model has not been trained on empathetic conversations yet. To train one, run:",
    ),
    "for_programs": ("প্রোগ্রাম থেকে ব্যবহার (API)", "Use from a program (API)"),
    "privacy": (
        "আপনার কথোপকথন শুধু আপনার এই ব্রাউজারে থাকে, সার্ভারে রাখা হয় না। “সব মুছুন” চাপলে এখান থেকেও মুছে যায়।",
        "Your conversation stays in this browser only; the server keeps none of it. “Clear all” removes it here too.",
    ),
}


def text(key: str, language: str, **values: object) -> str:
    """The sentence `key`, with numbers in the digits of the language."""
    sentence = _STRINGS[key][language != "bn"]
    shown = {
        name: number(value, language) if isinstance(value, int | float) else value for name, value in values.items()
    }
    return sentence.format(**shown) if shown else sentence


def number(value: float, language: str) -> str:
    """A number as the language writes it: ১২৩ in Bengali; three digits that matter after a point."""
    written = f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
    return written.translate(_BENGALI_DIGITS) if language == "bn" else written


def digits(written: str, language: str) -> str:
    """A telephone number as the language writes it; everything but the digits stays."""
    return written.translate(_BENGALI_DIGITS if language == "bn" else _LATIN_DIGITS)


def keys() -> list[str]:
    return list(_STRINGS)
