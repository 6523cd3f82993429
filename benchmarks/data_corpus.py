"""Write a chat corpus whose defects are known: `python benchmarks/data_corpus.py FOLDER [RECORDS [SEED]]`.

`corpus.jsonl` holds rows of id, prompt and completion; `truth.jsonl` says, for each row that is not plain, what was planted
in it. A row is a pure function of seed, number of rows and its own number, so nothing is held in memory, and a copy finds
its original wherever that stands. Texts are random words of twelve languages, a few topics to each text: unrelated rows
share words, as real messages do, but are no near duplicates.
"""

import hashlib
import html
import json
import random
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

GRAM = 5
NEAR = (0.7, 0.95)
"""Jaccard similarity of the character 5-grams of a near duplicate and its original."""
FORM_LETTERS = 80
"""Members of a crowd of form letters, about."""
SHARES = {"exact": 0.02, "near": 0.05, "form": 0.05, "pii": 0.20, "mojibake": 0.02, "html": 0.03, "garbage": 0.01}
"""What is planted in which share of the rows; the rest is plain."""


@dataclass(frozen=True)
class Language:
    """Words of a language, and what stands between them."""

    share: float
    common: str
    content: str
    glue: str = " "
    end: str = "."

    @cached_property
    def words(self) -> tuple[list[str], list[str]]:
        """Words that join, and words that tell."""
        return self.common.split(), self.content.split()


LANGUAGES = {
    "en": Language(
        0.58,
        "the a my your our this that for with from about after before and but because when while if not still again only very "
        "please just also every some into without under since until could would",
        "order parcel invoice account password delivery refund printer screen battery charger button window driver update "
        "backup "
        "server folder report meeting contract supplier customer engineer garden kitchen bicycle holiday ticket station "
        "platform "
        "airport luggage recipe chicken pepper butter orchard river mountain forest weather thunder morning evening weekend "
        "budget salary mortgage interest balance payment transfer receipt discount coupon warranty repair sensor antenna cable "
        "router signal channel camera picture album music concert guitar theatre novel chapter library teacher lesson homework "
        "doctor medicine appointment pharmacy insurance accident bridge tunnel traffic license engine wheel mirror jacket "
        "trousers sweater fabric colour pattern expected arrived returned cancelled explained noticed replaced broken missing "
        "damaged urgent quiet bright heavy cheap expensive reliable strange wrong correct happy sorry waiting written promised",
    ),
    "de": Language(
        0.07,
        "der die das ein eine mein unser für über nach während weil aber nicht noch immer schon sehr bitte auch mit ohne gegen "
        "können würde hätte möchte daß natürlich trotzdem gegenüber zurück",
        "Bestellung Rechnung Lieferung Gerät Schlüssel Drucker Bildschirm Kündigung Verträge Gebühr Überweisung Rückgabe "
        "Geschäft Straße Brücke Züge Bahnhöfe Flughafen Gepäck Frühstück Küche Gemüse Käse Brötchen Äpfel Gärten Bäume Wälder "
        "Flüsse Gewitter Wärme Kälte Prüfung Übung Lösung Schüler Universität Ärztin Apotheke Unfall Versicherung Möbel Stühle "
        "Tür Wände Hörer Lautstärke Fernsehgerät Verspätung Entschädigung geöffnet geschlossen beschädigt verspätet zugestellt "
        "gekündigt erklärt gehört gelöst höflich günstig schön größer kürzer völlig unmöglich ärgerlich gemütlich ständig "
        "häufig",
    ),
    "fr": Language(
        0.07,
        "le la les une mon notre votre pour avec sans après pendant parce mais toujours déjà très aussi où être était "
        "là à même jusqu’à encore peut-être depuis",
        "commande facture livraison écran clavier téléphone réseau crédit débit épargne prêt intérêt reçu hôtel chambre "
        "fenêtre "
        "déjeuner dîner pâtes gâteau crème pêche légumes forêt rivière été hiver février août théâtre musée élève leçon "
        "université médecin santé hôpital accident véhicule moteur pièce réparation garantie défaut problème réclamation "
        "réponse conseillère employé société marché événement arrivée départ métro vélo clé boîte étagère coupé cassé abîmé "
        "retardé remplacé expliqué reçue fermé pressé tranquille rapide étrange préféré désolé nécessaire gênant élevé",
    ),
    "es": Language(
        0.05,
        "el la los una mi nuestro para con sin después mientras porque pero todavía también más muy aquí está según además "
        "aún quizás ningún",
        "pedido factura envío teléfono batería cámara contraseña sesión conexión página año mañana habitación avión estación "
        "autobús equipaje montaña jardín árbol río niño señora compañía dirección devolución garantía reparación técnico "
        "médico "
        "farmacia operación dólar préstamo interés crédito débito público música canción película corazón jamón limón café té "
        "plátano azúcar cocina ventana espejo camión tráfico túnel examen lección biblioteca enviado recibido roto dañado "
        "pequeño rápido fácil difícil último próximo útil práctico increíble",
    ),
    "pl": Language(
        0.03,
        "to nie że się jest był moja nasz dla przez po już też więc ponieważ zawsze może jeszcze bardzo proszę która",
        "zamówienie przesyłka płatność faktura hasło konto wiadomość błąd urządzenie ładowarka kabel książka łóżko krzesło "
        "światło źródło żarówka dźwięk śniadanie obiad chleb masło jabłko truskawka łąka rzeka góra las śnieg wiosna jesień "
        "pociąg dworzec lotnisko bagaż ulica most sąsiad dziecko szkoła ćwiczenie lekarz apteka ubezpieczenie wypadek silnik "
        "część naprawa gwarancja zwrot pieniądze złoty rachunek spóźniony uszkodzony zgubiony wysłany otrzymałem wyjaśnić "
        "szybko późno źle dobrze",
    ),
    "ru": Language(
        0.08,
        "это мой наш ваш для после перед потому что но ещё уже очень тоже если когда чтобы можно только всегда пожалуйста без",
        "заказ посылка доставка счёт оплата возврат пароль телефон экран батарея зарядка принтер сервер отчёт договор магазин "
        "покупатель инженер сад кухня велосипед отпуск билет вокзал поезд самолёт багаж рецепт курица масло яблоко река гора "
        "лес погода гроза утро вечер выходные бюджет зарплата ипотека перевод чек скидка гарантия ремонт датчик кабель сигнал "
        "камера снимок музыка концерт гитара театр роман глава библиотека учитель урок врач лекарство аптека страховка авария "
        "мост дорога двигатель зеркало куртка ткань цвет сломан потерян задержан отправлен получил объяснить срочно тихо "
        "дёшево "
        "дорого странно правильно",
    ),
    "uk": Language(
        0.02,
        "це мій наш для після перед тому що але ще вже дуже також якщо коли щоб можна тільки завжди будь ласка без",
        "замовлення посилка доставка рахунок оплата повернення пароль екран батарея принтер звіт договір крамниця покупець "
        "інженер сад кухня відпустка квиток вокзал потяг літак рецепт курка олія яблуко річка гора ліс погода гроза ранок "
        "вечір "
        "бюджет зарплата переказ знижка гарантія ремонт кабель сигнал світлина музика бібліотека вчитель лікар ліки аптека "
        "міст дорога двигун дзеркало куртка колір зламаний загублений надіслано отримав пояснити терміново тихо дешево дивно",
    ),
    "el": Language(
        0.02,
        "το η ο μου μας για με χωρίς μετά πριν γιατί αλλά ακόμα ήδη πολύ επίσης όταν αν μόνο πάντα παρακαλώ",
        "παραγγελία δέμα παράδοση τιμολόγιο πληρωμή επιστροφή κωδικός τηλέφωνο οθόνη μπαταρία φορτιστής εκτυπωτής αναφορά "
        "συμβόλαιο κατάστημα πελάτης μηχανικός κήπος κουζίνα ποδήλατο διακοπές εισιτήριο σταθμός τρένο αεροπλάνο αποσκευές "
        "συνταγή κοτόπουλο βούτυρο μήλο ποτάμι βουνό δάσος καιρός καταιγίδα πρωί βράδυ μισθός έκπτωση εγγύηση επισκευή καλώδιο "
        "σήμα μουσική συναυλία βιβλιοθήκη δάσκαλος γιατρός φάρμακο ασφάλεια γέφυρα δρόμος κινητήρας καθρέφτης χρώμα χαλασμένο "
        "χαμένο καθυστέρησε εξηγήστε επείγον ήσυχα φθηνό ακριβό",
    ),
    "zh": Language(
        0.04,
        "的 了 我 我们 你们 请 在 和 因为 但是 已经 还 没有 可以 如果 之后 一直 非常 也 这个",
        "订单 包裹 发票 账户 密码 快递 退款 打印机 屏幕 电池 充电器 按钮 窗口 更新 备份 服务器 文件夹 报告 会议 合同 供应商 "
        "客户 工程师 花园 厨房 "
        "自行车 假期 车票 车站 机场 行李 菜谱 鸡肉 辣椒 黄油 河流 山脉 森林 天气 雷雨 早晨 傍晚 周末 预算 工资 贷款 利息 "
        "余额 付款 转账 收据 折扣 保修 "
        "维修 传感器 天线 电缆 路由器 信号 频道 相机 照片 音乐 演唱会 吉他 剧院 小说 图书馆 老师 课程 作业 医生 药品 预约 "
        "保险 事故 桥梁 隧道 交通 "
        "发动机 车轮 镜子 外套 颜色 损坏 丢失 延误 取消 解释 更换 紧急 安静 明亮 便宜 昂贵 可靠 奇怪 正确 高兴 抱歉 等待",
        glue="",
        end="。",
    ),
    "ja": Language(
        0.02,
        "は が を に で と の も から まで ので けれど まだ もう とても また この その 私の",
        "注文 荷物 請求書 アカウント パスワード 配送 返金 プリンター 画面 電池 充電器 ボタン ウィンドウ 更新 サーバー "
        "フォルダー 報告 会議 契約 お客様 "
        "技術者 庭 台所 自転車 休暇 切符 駅 空港 レシピ 鶏肉 バター 川 山 森 天気 雷 朝 夕方 週末 予算 給料 ローン 残高 "
        "支払い 振込 領収書 割引 保証 修理 "
        "センサー ケーブル ルーター 信号 カメラ 写真 音楽 コンサート ギター 劇場 小説 図書館 先生 授業 宿題 医者 薬 予約 "
        "保険 事故 橋 トンネル 交通 エンジン "
        "鏡 上着 色 届きました 壊れました 遅れています 説明してください 交換したい 急いでいます 静か 明るい 安い 高い 変です",
        glue="",
        end="。",
    ),
    "ar": Language(
        0.02,
        "في من على إلى عن مع بعد قبل لأن لكن ما زال جدا أيضا إذا عندما فقط دائما هذا هذه",
        "الطلب الطرد الفاتورة الحساب التوصيل الاسترداد الطابعة الشاشة البطارية الشاحن الزر النافذة التحديث الخادم المجلد "
        "التقرير الاجتماع العقد المورد العميل المهندس الحديقة المطبخ الدراجة العطلة التذكرة المحطة المطار الأمتعة الوصفة "
        "الدجاج "
        "الزبدة النهر الجبل الغابة الطقس الصباح المساء الميزانية الراتب القرض الرصيد الدفع التحويل الإيصال الخصم الضمان "
        "الإصلاح "
        "الإشارة القناة الصورة الموسيقى الحفلة الرواية المكتبة المعلم الدرس الطبيب الدواء التأمين الحادث الجسر الطريق المحرك "
        "المرآة اللون مكسور مفقود متأخر عاجل هادئ رخيص غريب صحيح",
    ),
}
EMOJI = ["😀", "🙏", "👍🏽", "🎉", "😡", "📦", "❤️", "🚲", "👩\u200d💻", "☕", "🌧️", "🇫🇷"]
SYLLABLES = [
    "an",
    "bel",
    "cor",
    "dan",
    "el",
    "far",
    "gan",
    "hol",
    "in",
    "jar",
    "kel",
    "lor",
    "mar",
    "nov",
    "or",
    "pel",
    "quin",
    "ros",
    "sal",
    "tor",
    "ul",
    "vin",
    "wes",
    "yar",
    "zan",
    "bri",
    "cla",
    "dro",
    "fle",
    "gri",
    "kra",
    "plo",
    "sta",
    "tre",
    "vel",
    "wim",
    "ston",
    "dale",
    "mont",
    "field",
    "berg",
]
DIGITS, LOWER, UPPER = "0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Row = dict[str, str]


def fold(text: str) -> str:
    """Fold letter case and white space, as the definition of a near duplicate asks."""
    return " ".join(text.casefold().split())


def grams(text: str) -> set[str]:
    """Return the character 5-grams of a folded text."""
    text = fold(text)
    return {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}


def jaccard(a: set[str], b: set[str]) -> float:
    """Return the share of common grams."""
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def _some(rng: random.Random, characters: str, number: int) -> str:
    return "".join(rng.choices(characters, k=number))


def _name(rng: random.Random) -> str:
    return "".join(rng.choices(SYLLABLES, k=rng.randint(2, 3)))


def _number(rng: random.Random) -> str:
    return rng.choice(("{}", "{}", "{}%", "{} EUR", "#{}", "v{}")).format(rng.randint(2, 99_999))


def _text(rng: random.Random, language: str, length: int) -> str:
    """Write sentences about a few topics, as many as make up the length."""
    spoken = LANGUAGES[language]
    common, content = spoken.words
    topics = rng.sample(content, min(36, len(content) // 2))
    emoji = language == "en" and rng.random() < 0.08
    sentences, size = [], 0
    while size < length:
        words = []
        for word in rng.choices(topics, k=rng.randint(3, 9)):
            words += [rng.choice(common), word] if rng.random() < 0.6 else [word]
        if rng.random() < 0.4:
            words.insert(rng.randrange(len(words)), _name(rng).title() if spoken.glue and rng.random() < 0.6 else _number(rng))
        sentence = spoken.glue.join(words)
        sentence = sentence[:1].upper() + sentence[1:] + (rng.choice("?!") if rng.random() < 0.15 else spoken.end)
        if emoji and rng.random() < 0.4:
            sentence += f" {rng.choice(EMOJI)}"
        sentences.append(sentence)
        size += len(sentence) + 1
    text = (spoken.glue or "").join(sentences)[:length]
    return text.rstrip().ljust(length, spoken.end)


def _length(rng: random.Random, language: str, shortest: int = 50) -> int:
    # Chinese and Japanese say the same in a third of the characters
    middle = 300 if LANGUAGES[language].glue else 110
    return min(2_000, max(shortest, round(middle * 2.718281828 ** rng.gauss(0, 0.75))))


def _luhn(digits: str) -> str:
    """Append the check digit of ISO/IEC 7812-1."""
    doubled = [int(d) * 2 if place % 2 == 0 else int(d) for place, d in enumerate(reversed(digits))]
    return digits + str(-sum(value - 9 if value > 9 else value for value in doubled) % 10)


def _grouped(rng: random.Random, text: str) -> str:
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4)) if rng.random() < 0.6 else text


def _email(rng: random.Random) -> str:
    first, last = _name(rng), _name(rng)
    local = rng.choice(("{0}.{1}", "{0}.{1}", "{0}", "{0}_{1}", "{0}+{1}", "{0}-{1}")).format(first, last) + rng.choice(
        ("", "", "87")
    )
    domain = rng.choice(("{0}.co.uk", "{0}.com", "mail.{0}.de", "{0}-{1}.org", "{0}.fr")).format(_name(rng), _name(rng))
    return f"{local}@{domain}" if rng.random() < 0.9 else f"{local.title()}@{domain.upper()}"


def _phone(rng: random.Random) -> str:
    forms = (
        "+49 17# #######", "+44 20 7### ####", "+1 415-555-####", "(415) 555-####", "415-555-####", "+33 6 ## ## ## ##",
        "030 ########", "+7 (912) ###-##-##", "+86 138 #### ####", "+4917########", "0171/#######",
    )  # fmt: skip
    return "".join(rng.choice(DIGITS) if c == "#" else c for c in rng.choice(forms))


def _ipv4(rng: random.Random) -> str:
    return ".".join(str(rng.randint(11, 250)) for _ in range(4))


def _ipv6(rng: random.Random) -> str:
    groups = [f"{rng.randint(4096, 65535):x}" for _ in range(7)]
    return "2a02:" + (":".join(groups) if rng.random() < 0.5 else f"{groups[0]}:{groups[1]}::{groups[2]}")


def _card(rng: random.Random) -> str:
    prefix, length = rng.choice((("4", 16), ("52", 16), ("54", 16), ("2345", 16), ("37", 15), ("6011", 16)))
    number = _luhn(prefix + _some(rng, DIGITS, length - 1 - len(prefix)))
    if length == 16 and rng.random() < 0.7:
        return rng.choice(" -").join(number[i : i + 4] for i in range(0, 16, 4))
    return number


def _iban(rng: random.Random) -> str:
    country, letters, digits = rng.choice(
        (("DE", 0, 18), ("GB", 4, 14), ("NL", 4, 10), ("ES", 0, 20), ("PL", 0, 24), ("FR", 0, 23))
    )
    account = _some(rng, UPPER, letters) + _some(rng, DIGITS, digits)
    check = 98 - int("".join(str(int(c, 36)) for c in f"{account}{country}00")) % 97
    return _grouped(rng, f"{country}{check:02}{account}")


def _national_id(rng: random.Random) -> str:
    form = rng.choice("uuubbbss")
    if form == "u":  # United States: social security number
        return f"{rng.randint(100, 665)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}"
    if form == "b":  # United Kingdom: national insurance number
        pairs = " ".join(str(rng.randint(10, 99)) for _ in range(3))
        return f"{rng.choice('ACEHJ')}{rng.choice('ABCEH')} {pairs} {rng.choice('ABCD')}"
    number = rng.randint(10_000_000, 99_999_999)  # Spain: DNI
    return f"{number}{rng.choice(('', '-'))}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"


def _url(rng: random.Random) -> str:
    scheme = rng.choice(("https", "ftp", "postgresql", "redis"))
    return f"{scheme}://{_name(rng)}:{_some(rng, LOWER + DIGITS, 12)}@{_name(rng)}.example.com/{_name(rng)}"


def _key(rng: random.Random) -> str:
    letters = LOWER + UPPER + DIGITS
    forms = {"sk-": 40, "ghp_": 36, "glpat-": 20, "hf_": 34, "sk_live_": 24, "AIza": 35}
    prefix = rng.choice([*forms, "AKIA"])
    return prefix + (_some(rng, UPPER + DIGITS, 16) if prefix == "AKIA" else _some(rng, letters, forms[prefix]))


# Each kind with what people write before it; by language where that matters for what stands next to the value.
PERSONAL = {
    "email": (_email, "Please write to|My address is|E-Mail:|邮箱：|почта"),
    "phone": (_phone, "Call me on|My number is|Tel.|电话：|тел."),
    "ipv4": (_ipv4, "I connect from|The server is|IP:|地址：|адрес"),
    "ipv6": (_ipv6, "I connect from|The server is|IP:|地址：|адрес"),
    "card": (_card, "My card is|Paid with|Karte:|卡号：|карта"),
    "iban": (_iban, "Refund it to|My IBAN is|Konto:|账号：|счёт"),
    "national_id": (_national_id, "My id is|Identity number:|DNI|证件：|паспорт"),
    "url": (_url, "I opened|The link is|Adresse:|网址：|ссылка"),
    "key": (_key, "I used the key|The token is|Schlüssel:|密钥：|ключ"),
}


def _plant(rng: random.Random, text: str, language: str) -> tuple[str, list[tuple[str, str]]]:
    """Put one to three personal facts between sentences; return also their kinds and values."""
    spoken = LANGUAGES[language]
    planted = []
    for kind in rng.sample(sorted(PERSONAL), rng.choice((1, 1, 2, 3))):
        make, leads = PERSONAL[kind]
        value, choices = make(rng), leads.split("|")
        lead = choices[3] if not spoken.glue else choices[4] if language in ("ru", "uk") else rng.choice(choices[:3])
        said = f"{lead}{spoken.glue}{value}{rng.choice((spoken.end, spoken.end, ''))}"
        stop = spoken.end + spoken.glue
        places = [i + 1 for i in range(len(text)) if text.startswith(stop, i)]
        at = rng.choice(places) if places else len(text)
        text = f"{text[:at]} {said} {text[at:].lstrip()}".strip() if spoken.glue else f"{text[:at]}{said}\n{text[at:]}".strip()
        planted.append((kind, value))
    return text, planted


def _garbage(rng: random.Random, text: str) -> str:
    return rng.choice(
        (
            rng.choice("aZ!=#我") * rng.randint(200, 900),
            f"{text[:40]}\n" * 40,
            f"{' '.join(_name(rng) for _ in range(12))} " * 30,
            _some(rng, "!@#$%^&*()_+|~=[]{};:<>?/", rng.randint(150, 500)),
        )
    ).strip()


def _marked_up(rng: random.Random, text: str) -> tuple[str, str]:
    """Return a text with an ampersand as HTML, and what a reader sees of it."""
    text = f"{text} A & B"
    words = html.escape(text, quote=False).split(" ")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(words))
        word, form = words[at], rng.choice(("<b>{}</b>", '<a href="https://example.com/a?b=1">{}</a>', "<i>{}</i>", "<br>{}"))
        words[at] = word if "<" in word else form.format(word)
    return f"<p>{' '.join(words)}</p>\n<p></p>", text


class Corpus:
    """A corpus of so many rows; each row can be asked for by its number."""

    def __init__(self, records: int, seed: int = 0) -> None:
        """Decide nothing yet: rows are made as they are asked for."""
        self.records = records
        self.seed = seed
        self.groups = max(1, round(records * SHARES["form"] / FORM_LETTERS))

    def role(self, number: int) -> str:
        """Return what is planted in a row, or `plain`."""
        digest = hashlib.blake2b(f"{self.seed}:role:{number}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        for name, share in SHARES.items():
            if place < share:
                return name
            place -= share
        return "plain"

    def row(self, number: int) -> tuple[Row, dict[str, Any] | None]:
        """Return a row, and what was planted in it."""
        rng = random.Random(f"{self.seed}:{number}")
        role = self.role(number)
        if role in ("exact", "near"):
            return self._copy(rng, number, role)
        language = rng.choices(list(LANGUAGES), [spoken.share for spoken in LANGUAGES.values()])[0]
        if role == "mojibake":
            language = rng.choice(("de", "fr", "es", "pl"))
        prompt, completion = (_text(rng, language, _length(rng, language)) for _ in range(2))
        truth: dict[str, Any] = {"kind": role}
        if role == "form":
            prompt, truth["group"] = self._form_letter(rng)
        elif role == "pii":
            (prompt, asked), (completion, answered) = _plant(rng, prompt, language), (completion, [])
            if rng.random() < 0.3:
                completion, answered = _plant(rng, completion, language)
            sides = (("prompt", prompt, asked), ("completion", completion, answered))
            truth["planted"] = [[name, kind, value, text.index(value)] for name, text, found in sides for kind, value in found]
        elif role == "mojibake":
            truth["prompt"] = prompt
            try:
                prompt = prompt.encode().decode("cp1252")
            except UnicodeDecodeError:  # a byte that code page 1252 leaves free
                prompt = prompt.encode().decode("latin-1")
        elif role == "html":
            prompt, truth["prompt"] = _marked_up(rng, prompt)
        elif role == "garbage":
            prompt = _garbage(rng, prompt)
        return _row(number, prompt, completion), None if role == "plain" else {"id": _id(number), **truth}

    def _copy(self, rng: random.Random, number: int, role: str) -> tuple[Row, dict[str, Any]]:
        while True:
            other = rng.randrange(self.records)
            if self.role(other) != "plain":
                continue
            original = self.row(other)[0]
            truth = {"id": _id(number), "kind": role, "of": original["id"]}
            if role == "exact":
                return _row(number, original["prompt"], original["completion"]), truth
            found = _edited(rng, original["prompt"])
            if found:
                return _row(number, found[0], original["completion"]), {**truth, "jaccard": round(found[1], 4)}

    def _form_letter(self, rng: random.Random) -> tuple[str, int]:
        """Write a letter that shares two thirds with the others of its crowd: alike, but no near duplicate."""
        group = rng.randrange(self.groups)
        common = random.Random(f"{self.seed}:group:{group}")
        language = common.choices(list(LANGUAGES), [spoken.share for spoken in LANGUAGES.values()])[0]
        shared = _text(common, language, _length(common, language, 150))
        own = _text(rng, language, len(shared) // 2)
        at = common.randrange(len(shared))
        return f"{shared[:at].strip()}\n{own}\n{shared[at:].strip()}", group


def _id(number: int) -> str:
    return f"r{number:08}"


def _row(number: int, prompt: str, completion: str) -> Row:
    return {"id": _id(number), "prompt": prompt, "completion": completion}


def _edited(rng: random.Random, text: str) -> tuple[str, float] | None:
    """Replace, drop and add words until the similarity falls to a random one in `NEAR`; None if it will not."""
    if len(text) < 100:
        return None
    glue = " " if text.count(" ") > len(text) / 20 else ""
    pieces = text.split(" ") if glue else [text[i : i + 2] for i in range(0, len(text), 2)]
    spare = pieces.copy()
    original, target = grams(text), rng.uniform(*NEAR)
    best = None
    for _ in range(200):
        for _ in range(max(1, len(pieces) // 60)):
            at, what = rng.randrange(len(pieces)), rng.random()
            if what < 0.6:
                pieces[at] = rng.choice(spare) if glue and what < 0.3 else _name(rng)[:6] if glue else rng.choice(spare)[::-1]
            elif what < 0.8 and len(pieces) > 5:
                del pieces[at]
            else:
                pieces.insert(at, rng.choice(spare))
        edited = glue.join(pieces)
        similarity = jaccard(original, grams(edited))
        if similarity < NEAR[0]:
            break
        if similarity <= NEAR[1]:
            best = edited, similarity
        if similarity <= target:
            break
    return best


def write(folder: Path, records: int, seed: int = 0) -> None:
    """Write `corpus.jsonl`, `truth.jsonl` and `facts.json` (rows, bytes of message text, share of rows that are not ASCII)."""
    corpus = Corpus(records, seed)
    folder.mkdir(parents=True, exist_ok=True)
    text, beyond = 0, 0
    with (
        (folder / "corpus.jsonl").open("w", encoding="utf-8") as rows,
        (folder / "truth.jsonl").open("w", encoding="utf-8") as truths,
    ):
        for number in range(records):
            row, truth = corpus.row(number)
            said = row["prompt"] + row["completion"]
            text += len(said.encode())
            beyond += not said.isascii()
            rows.write(json.dumps(row, ensure_ascii=False) + "\n")
            if truth:
                truths.write(json.dumps(truth, ensure_ascii=False) + "\n")
    facts = {"records": records, "seed": seed, "bytes": text, "not_ascii": beyond / records}
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    write(Path(sys.argv[1]), *map(int, sys.argv[2:]))
