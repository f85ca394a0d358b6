"""Refusals by rule: which words, at the beginning of an answer, decline what was asked.

Data for training must not lose answers that only sound like refusals ("I can't help but notice"), so a rule asks for
more than one word of sorrow: an inability and what is not done, or a plain refusal. What is said to decline in the
middle of an answer, or between quotation marks, does not count.
"""

from __future__ import annotations

import re
import unicodedata

from factory.engine.errors import FactoryError, nearest

BEGINNING = 240
"""Characters in which a refusal must begin."""

_DO_EN = (
    r"(?:help(?! but)|assist|provide|comply|fulfil|answer|generate|create|write|produce|support|do (?:that|this|it)\b"
    r"|offer|give (?:you|any|advice|instructions|out)|share|discuss|engage|participate|recommend(?! \w+ (?:enough|more))"
    r"|condone|encourage|advise|tell you (?:how|that|what|about)|complete (?:this|that|your)|continue (?:this|with)"
    r"|respond|process (?:this|that|your)|access|browse|display|send|endorse|promote|suggest|in good conscience|allow"
    r"|make (?:jokes|fun|a statement)|speak (?:on|about|to)|talk about|get involved|teach you|show you how|go into"
    r"|fulfill|facilitate|aid|be able to (?:help|assist|provide|answer|do))"
)
_NOT_EN = (
    r"(?:can't|cannot|can not|won't|will not|(?:am|'m|are|'re) (?:not able|unable|not going|not willing|not allowed"
    r"|not permitted|not programmed|not designed|not equipped|not qualified)(?: to)?"
    r"|(?:don't|do not) (?:think|believe|feel) (?:that )?(?:i|we) (?:can|could|should|want to|would)"
    r"|(?:don't|do not) (?:want|wish|have the ability|have the capability) to|shouldn't|would not|wouldn't)"
)
# Each is searched for in lower case, with plain quotes and single spaces.
RULES = {
    "en": (
        rf"\b(?:i|we) ?(?:(?:really|simply|just|unfortunately,?|also|honestly) )*{_NOT_EN} (?:\w+ ){{0,3}}?{_DO_EN}",
        r"\b(?:i|we)(?: am|'m| are|'re)? (?:(?:truly|very|so|really) )?(?:sorry|afraid),? (?:but|that|however,?)"
        rf" (?:[^.!?]{{0,80}} )?(?:i|we) ?{_NOT_EN}(?! help but)",
        r"\b(?:i|we) (?:must|have to|need to|will have to|am going to|respectfully|politely)"
        r"(?: (?:respectfully|politely|regretfully))* (?:decline|refuse)\b",
        r"\bi (?:decline|refuse) to\b",
        r"\bi(?:'m| am) not (?:really |very |at all )?comfortable|\bi (?:don't|do not) feel comfortable",
        r"\b(?:against|violates?|contrary to) my (?:guidelines|programming|principles|policies|values|purpose)",
        r"\b(?:is|that's|it's) not something (?:that )?i(?:'m| am| can| could| will| want| would|'d)",
        r"^(?:no|nope), i (?:won't|can't|cannot|will not|don't (?:want|think))\b",
    ),
    "zh": (
        r"(?:对不起|抱歉|不好意思|對不起|很遗憾|遗憾的是)[^。！？!?]{0,40}?(?:不能|无法|無法|不会|不會|不可以|没有办法|没办法|拒绝|不便)",
        r"(?:我|本人|我们|作为[^。]{0,20})(?:实在|确实|目前|暂时|也)?(?:不能|无法|無法|不會|不会|没有办法|没办法|不可以)"
        r"(?:为您|为你|向您|向你|给您|给你|直接|继续|協助|帮|满足|提供|回答|协助|帮助|生成|创作|撰写|参与|支持|完成|执行|讨论|分享|執行|給)",
        r"我(?:必须|只能|不得不)?(?:拒绝|拒絕|婉拒)|恕(?:我)?(?:不能|难|無法|无法)|无可奉告",
    ),
    "es": (
        r"\b(?:lo siento|lo lamento|disculpa|disculpe|perdón|perdona)[^.!?]{0,80}\bno (?:puedo|podemos|me es posible"
        r"|es posible|voy a|soy capaz|estoy)",
        r"\bno (?:puedo|podemos|voy a|me es posible|soy capaz de|estoy (?:en condiciones de|dispuest[oa] a|autorizad[oa] a"
        r"|programad[oa] para)) (?:\w+ ){0,2}?(?:ayudar|proporcionar|ofrecer|responder|cumplir|generar|crear|escribir|dar"
        r"|asistir|hacer eso|facilitar|brindar|realizar|compartir|participar|apoyar|continuar|recomendar)",
        r"\b(?:debo|tengo que) (?:declinar|rechazar|negarme)|\bme niego a",
    ),
    "fr": (
        r"\b(?:désolée?|navrée?|regrette|excusez-moi|pardon)\b[^.!?]{0,80}\b(?:je )?ne (?:peux|pourrai|suis|vais|puis)",
        r"\bje ne (?:peux|pourrai|puis|vais|suis pas (?:en mesure|capable|autorisée?|habilitée?)) ?(?:pas )?(?:de |d'|à )?"
        r"(?:\w+ |vous |t'|l'|y )*?(?:aider|fournir|répondre|satisfaire|générer|créer|écrire|donner|assister|faire cela"
        r"|proposer|partager|participer|soutenir|continuer|recommander|rédiger|accéder)",
        r"\bje (?:dois|suis obligée? de) (?:refuser|décliner)|\bje (?:refuse|décline)\b|\bil m'est impossible",
    ),
    "de": (
        r"\b(?:tut mir leid|entschuldigung|bedaure|leider)\b[^.!?]{0,80}\b(?:kann|können|darf|werde|möchte)\b[^.!?]{0,80}"
        r"\b(?:nicht|keine?n?)\b",
        r"\b(?:ich|wir) (?:kann|können|darf|werde|möchte) (?:\w+ ){0,6}?(?:nicht|keine?n?) (?:\w+ ){0,6}?(?:helfen|behilflich"
        r"|anbieten|bereitstellen|beantworten|erfüllen|erstellen|schreiben|geben|unterstützen|nachkommen|weiterhelfen"
        r"|liefern|tun|machen|teilen|entsprechen|generieren)",
        r"\b(?:dabei|damit|das|hierbei) kann ich (?:\w+ ){0,3}?nicht (?:\w+ )?(?:helfen|machen|tun|unterstützen|beantworten)",
        r"\bich (?:muss|möchte) (?:\w+ ){0,4}?ablehnen|\bich (?:weigere mich|lehne (?:\w+ ){0,3}?ab)",
        r"\bich bin nicht (?:in der lage|befugt|berechtigt|bereit)",
    ),
    "pt": (
        r"\b(?:desculpe|desculpa|sinto muito|lamento|perdão)[^.!?]{0,80}\bnão (?:posso|podemos|consigo|é possível|vou|sou)",
        r"\bnão (?:posso|podemos|consigo|vou|sou capaz de|estou (?:apto|autorizad[oa]) a) (?:\w+ ){0,2}?(?:ajudar|fornecer"
        r"|oferecer|responder|cumprir|gerar|criar|escrever|dar|auxiliar|fazer isso|atender|compartilhar|participar|apoiar"
        r"|continuar|recomendar)",
        r"\b(?:devo|preciso|tenho que) (?:recusar|declinar)|\b(?:eu )?me recuso a|\brecuso-me",
    ),
    "it": (
        r"\b(?:mi dispiace|spiacente|scusa|scusi)[^.!?]{0,80}\bnon (?:posso|possiamo|sono|riesco|mi è possibile)",
        r"\bnon (?:posso|possiamo|sono in grado di|mi è possibile|intendo) (?:\w+ ){0,2}?(?:aiutar|fornir|offrir|rispond"
        r"|soddisfar|generar|crear|scriver|dar|assister|farlo|condivider|partecipar|sostener|continuar|consigliar)",
        r"\b(?:devo|sono costrett[oa] a) (?:rifiutar|declinar)|\bmi rifiuto",
    ),
    "ru": (
        r"\b(?:извините|простите|к сожалению|сожалею|прошу прощения)[^.!?]{0,80}\bне (?:могу|можем|буду|в состоянии|имею)",
        r"\b(?:я|мы) (?:\w+ )?не (?:могу|можем|буду|смогу|стану) (?:\w+ ){0,3}?(?:помо|предостав|ответ|выполн|созда|напис|писать"
        r"|дать|давать|генерир|обсужд|поддерж|участв|делать|продолж|рекоменд|отвечать)",
        r"\b(?:вынужден[аы]?|должен|должна) отказать|\bя отказываюсь|\bне могу (?:вам |тебе |с этим )*помочь",
    ),
    "ja": (
        r"(?:申し訳(?:ありません|ございません)|すみません|ごめんなさい|恐れ入りますが|残念ですが|残念ながら)[^。！？]{0,60}"
        r"(?:できません|できかねます|致しかねます|いたしかねます|ません|お断り|控え)",
        r"(?:お答え|お手伝い|回答|提供|対応|協力|支援|お応え|ご案内|生成|作成)(?:すること)?(?:は|が|を)?(?:でき(?:ません|かねます)|"
        r"致しかねます|いたしかねます)",
        r"お断り(?:し|いた|致)|拒否(?:し|いた)",
    ),
    "ko": (
        r"(?:죄송(?:하지만|합니다만|합니다|해요)|미안(?:하지만|합니다)|유감스럽게도|안타깝지만|안타깝게도)[^.!?]{0,60}"
        r"(?:수 없|못합니다|못 합니다|어렵습니다|않습니다|불가능|거절)",
        r"(?:도와|답변|제공|도움을|대답|응답|작성|생성|지원|알려|말씀)[^.!?]{0,12}(?:수(?:는|가)? 없|못합니다|못해)",
        r"거절(?:하겠|합니다|해야)|거부(?:하겠|합니다)",
    ),
    "ar": (
        r"(?:آسف|آسفة|عذر[اًا]+|عذرا|أعتذر|للأسف|نأسف)[^.!?؟]{0,80}(?:لا (?:أستطيع|استطيع|يمكنني|يمكننا|أقدر)|لن |غير قادر)",
        r"(?:لا (?:أستطيع|استطيع|يمكنني|يمكننا)|لن (?:أقوم|أستطيع|أتمكن)|لست قادر[اًاة]* على|غير قادر[ة]? على)"
        r"(?: من)? (?:\w+ ){0,2}?(?:ال)?(?:مساعد|تقديم|توفير|إجاب|رد|إنشاء|كتاب|إعطاء|مشارك|دعم|تلبي|القيام|أن أساعد|بمساعد|بتقديم)",
        r"(?:أرفض|يجب (?:علي )?أن أرفض|أعتذر عن (?:عدم )?(?:تقديم|مساعد|الإجابة|تلبية))",
    ),
    "hi": (
        r"(?:माफ़|माफ|क्षमा|खेद|दुर्भाग्य)[^।!?]{0,80}(?:नहीं (?:कर|दे|बता|लिख|हो|बना)|असमर्थ)",
        r"(?:मदद|सहायता|जानकारी|उत्तर|जवाब|प्रदान|पूरा|निर्देश)[^।!?]{0,30}नहीं (?:कर|दे|बता|दूँ|दूं|करूँ|करूं) ?(?:सकता|सकती|सकते|गा|गी)?",
        r"(?:इनकार|इंकार|मना) (?:करता|करती|करना)|मैं असमर्थ",
    ),
    "vi": (
        r"(?:xin lỗi|rất tiếc|lấy làm tiếc)[^.!?]{0,80}(?:không thể|không được phép|không có khả năng|từ chối|sẽ không)",
        r"tôi (?:không thể|sẽ không|không được phép|không có khả năng) (?:\w+ ){0,2}?(?:giúp|cung cấp|trả lời|hỗ trợ|thực hiện"
        r"|tạo|viết|đáp ứng|chia sẻ|tham gia|tiếp tục|đưa ra|làm điều)",
        r"tôi (?:phải |xin |xin phép )?từ chối",
    ),
    "th": (
        r"(?:ขอโทษ|ขออภัย|เสียใจ)[^.!?]{0,60}(?:ไม่สามารถ|ไม่อาจ|ไม่ได้รับอนุญาต|ขอปฏิเสธ)",
        r"(?:ไม่สามารถ|ไม่อาจ)(?:ที่จะ)?(?:ให้|ช่วย|ตอบ|สร้าง|เขียน|สนับสนุน|ดำเนินการ|แนะนำ|ทำตาม|ปฏิบัติตาม)",
        r"ขอปฏิเสธ|ต้องปฏิเสธ",
    ),
    "id": (
        r"\b(?:maaf|mohon maaf|sayangnya)\b[^.!?]{0,80}\b(?:tidak (?:bisa|dapat|mampu|akan|boleh)|menolak)\b",
        r"\b(?:saya|kami) tidak (?:bisa|dapat|mampu|akan|boleh) (?:\w+ ){0,2}?(?:membantu|menyediakan|memberikan|menjawab|membuat"
        r"|menulis|memenuhi|mendukung|melakukan|berbagi|melanjutkan|merekomendasikan)",
        r"\bsaya (?:harus |terpaksa )?menolak\b",
    ),
    "tr": (
        r"\b(?:üzgünüm|maalesef|ne yazık ki|özür dilerim|kusura bakma\w*)[^.!?]{0,80}(?:amam|emem|amıyorum|emiyorum|amayız"
        r"|emeyiz|mümkün değil|amayacağım|emeyeceğim)\b",
        r"\b(?:yardımcı olamam|yardım edemem|yardımcı olamıyorum|bilgi veremem|cevap veremem|yanıt veremem|sağlayamam"
        r"|yerine getiremem|bunu yapamam|oluşturamam|yazamam|cevaplayamam|yanıtlayamam)\b",
        r"\breddediyorum|\breddetmek zorundayım",
    ),
    "pl": (
        r"\b(?:przepraszam|przykro mi|niestety|wybacz)\b[^.!?]{0,80}\bnie (?:mogę|możemy|jestem w stanie|będę|potrafię)",
        r"\bnie (?:mogę|możemy|jestem w stanie|będę) (?:\w+ ){0,3}?(?:pomóc|pomagać|udzielić|dostarczyć|odpowiedzieć|spełnić"
        r"|stworzyć|napisać|podać|zrobić|wspierać|kontynuować|zapewnić|polecić|wygenerować)",
        r"\b(?:muszę|zmuszon[ya] jestem) odmówić|\bodmawiam\b",
    ),
}
_COMPILED = {code: [re.compile(rule) for rule in rules] for code, rules in RULES.items()}
_PLAIN = str.maketrans({"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"'})
# A letter or a quotation that was asked for: what it declines is not the request.
_LETTER = re.compile(r'["«„「]|\W*(?:subject|dear|title|betreff|objet|asunto|主题|尊敬的)\b')


def refusal(response: str, language: str = "en") -> str:
    """The words with which an answer declines, empty where it does not; by the rules of its language and of English.

    `FactoryError` where there are no rules for the language.
    """
    code = language.lower().replace("_", "-").partition("-")[0]
    if code not in _COMPILED:
        raise FactoryError(f"language {language!r}: no rules of refusal{nearest(code, RULES)}; there are {list(RULES)}")
    start = unicodedata.normalize("NFC", response[: 4 * BEGINNING]).translate(_PLAIN).lower()
    start = " ".join(start.split())
    if _LETTER.match(start):
        return ""
    for rule in dict.fromkeys((*_COMPILED[code], *_COMPILED["en"])):
        found = rule.search(start)
        if found and found.start() < BEGINNING:
            return found[0]
    return ""
