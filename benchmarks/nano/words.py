"""Tables of words the skills draw from; knows nothing of prompts or tokens."""

from __future__ import annotations


def split(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


# country, capital, country in Chinese, capital in Chinese
CAPITALS: tuple[tuple[str, str, str, str], ...] = (
    ("France", "Paris", "法国", "巴黎"),
    ("Germany", "Berlin", "德国", "柏林"),
    ("Italy", "Rome", "意大利", "罗马"),
    ("Spain", "Madrid", "西班牙", "马德里"),
    ("Portugal", "Lisbon", "葡萄牙", "里斯本"),
    ("Japan", "Tokyo", "日本", "东京"),
    ("China", "Beijing", "中国", "北京"),
    ("India", "New Delhi", "印度", "新德里"),
    ("Russia", "Moscow", "俄罗斯", "莫斯科"),
    ("Canada", "Ottawa", "加拿大", "渥太华"),
    ("Australia", "Canberra", "澳大利亚", "堪培拉"),
    ("Brazil", "Brasilia", "巴西", "巴西利亚"),
    ("Egypt", "Cairo", "埃及", "开罗"),
    ("Greece", "Athens", "希腊", "雅典"),
    ("Turkey", "Ankara", "土耳其", "安卡拉"),
    ("Poland", "Warsaw", "波兰", "华沙"),
    ("Austria", "Vienna", "奥地利", "维也纳"),
    ("Switzerland", "Bern", "瑞士", "伯尔尼"),
    ("Sweden", "Stockholm", "瑞典", "斯德哥尔摩"),
    ("Norway", "Oslo", "挪威", "奥斯陆"),
    ("Finland", "Helsinki", "芬兰", "赫尔辛基"),
    ("Denmark", "Copenhagen", "丹麦", "哥本哈根"),
    ("Ireland", "Dublin", "爱尔兰", "都柏林"),
    ("Hungary", "Budapest", "匈牙利", "布达佩斯"),
    ("Mexico", "Mexico City", "墨西哥", "墨西哥城"),
    ("Argentina", "Buenos Aires", "阿根廷", "布宜诺斯艾利斯"),
    ("Chile", "Santiago", "智利", "圣地亚哥"),
    ("Peru", "Lima", "秘鲁", "利马"),
    ("Cuba", "Havana", "古巴", "哈瓦那"),
    ("South Korea", "Seoul", "韩国", "首尔"),
    ("Thailand", "Bangkok", "泰国", "曼谷"),
    ("Vietnam", "Hanoi", "越南", "河内"),
    ("Indonesia", "Jakarta", "印度尼西亚", "雅加达"),
    ("Malaysia", "Kuala Lumpur", "马来西亚", "吉隆坡"),
    ("Kenya", "Nairobi", "肯尼亚", "内罗毕"),
    ("Morocco", "Rabat", "摩洛哥", "拉巴特"),
    ("Iran", "Tehran", "伊朗", "德黑兰"),
    ("Iraq", "Baghdad", "伊拉克", "巴格达"),
    ("Ukraine", "Kyiv", "乌克兰", "基辅"),
    ("Belgium", "Brussels", "比利时", "布鲁塞尔"),
    ("the Netherlands", "Amsterdam", "荷兰", "阿姆斯特丹"),
    ("the United Kingdom", "London", "英国", "伦敦"),
    ("the United States", "Washington", "美国", "华盛顿"),
    ("the Philippines", "Manila", "菲律宾", "马尼拉"),
    ("New Zealand", "Wellington", "新西兰", "惠灵顿"),
    ("England", "London", "英格兰", "伦敦"),
    ("Scotland", "Edinburgh", "苏格兰", "爱丁堡"),
    ("Czechia", "Prague", "捷克", "布拉格"),
    ("Romania", "Bucharest", "罗马尼亚", "布加勒斯特"),
    ("Bulgaria", "Sofia", "保加利亚", "索非亚"),
    ("Serbia", "Belgrade", "塞尔维亚", "贝尔格莱德"),
    ("Croatia", "Zagreb", "克罗地亚", "萨格勒布"),
    ("Iceland", "Reykjavik", "冰岛", "雷克雅未克"),
    ("Estonia", "Tallinn", "爱沙尼亚", "塔林"),
    ("Latvia", "Riga", "拉脱维亚", "里加"),
    ("Lithuania", "Vilnius", "立陶宛", "维尔纽斯"),
    ("Mongolia", "Ulaanbaatar", "蒙古", "乌兰巴托"),
    ("Nepal", "Kathmandu", "尼泊尔", "加德满都"),
    ("Pakistan", "Islamabad", "巴基斯坦", "伊斯兰堡"),
    ("Bangladesh", "Dhaka", "孟加拉国", "达卡"),
    ("Israel", "Jerusalem", "以色列", "耶路撒冷"),
    ("Jordan", "Amman", "约旦", "安曼"),
    ("Lebanon", "Beirut", "黎巴嫩", "贝鲁特"),
    ("Saudi Arabia", "Riyadh", "沙特阿拉伯", "利雅得"),
    ("Qatar", "Doha", "卡塔尔", "多哈"),
    ("Ethiopia", "Addis Ababa", "埃塞俄比亚", "亚的斯亚贝巴"),
    ("Ghana", "Accra", "加纳", "阿克拉"),
    ("Nigeria", "Abuja", "尼日利亚", "阿布贾"),
    ("Senegal", "Dakar", "塞内加尔", "达喀尔"),
    ("Colombia", "Bogota", "哥伦比亚", "波哥大"),
    ("Ecuador", "Quito", "厄瓜多尔", "基多"),
    ("Uruguay", "Montevideo", "乌拉圭", "蒙得维的亚"),
    ("Venezuela", "Caracas", "委内瑞拉", "加拉加斯"),
    ("Singapore", "Singapore", "新加坡", "新加坡"),
)

NAMES: tuple[str, ...] = split(
    """Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olivia Paul Rosa Sam Tina Victor
    Wendy Zoe Alice Bob Carol Daniel Eva Frank Gina Hugo Irene James Karl Laura Martin Nina Oscar Peter Ruth Simon
    Tom Ursula Vera Walter Yusuf Amir Bella Carlos Diana Elena Fatima George Hannah Ivan Julia Kevin Linda Mark
    Nora Omar Priya Ravi Sofia Thomas Uma Vikram Yuki Ahmed Chen Mei Lars Ingrid Pablo Lucia Marco Chloe Louis
    Marie Hans Greta Sven Astrid Kofi Amara Tariq Leila Diego Carmen Ethan Mia Liam Ava Lucas Isla"""
)
NAMES_ZH: tuple[str, ...] = split(
    "小明 小红 小华 小丽 小刚 小芳 小军 李明 王芳 张伟 刘洋 陈静 杨帆 赵强 周杰 吴敏 徐丽 孙涛 马超 林峰"
)
CITIES: tuple[str, ...] = split(
    """Munich Hamburg Milan Naples Barcelona Seville Porto Osaka Kyoto Shanghai Mumbai Toronto Montreal Sydney
    Melbourne Boston Chicago Seattle Denver Dallas Houston Austin Miami Atlanta Geneva Zurich Lyon Nice Marseille
    Bordeaux Glasgow Leeds Bristol Oxford Cambridge York Gdansk Krakow Bergen Turku Aarhus Cork Antwerp Ghent
    Rotterdam Utrecht Salzburg Graz Venice Turin Florence Valencia Granada Izmir Lagos Dakar Durban Perth Auckland
    Paris London Berlin Rome Madrid Lisbon Tokyo Vienna Oslo Dublin Prague Warsaw Athens Cairo Lima Seoul Hanoi"""
)
CITIES_ZH: tuple[str, ...] = split("北京 上海 广州 深圳 杭州 南京 成都 武汉 西安 重庆 天津 苏州 青岛 大连 厦门 长沙")
JOBS: tuple[str, ...] = split(
    "teacher doctor nurse baker pilot farmer painter singer writer driver lawyer cook engineer dentist tailor"
)
COLORS: tuple[str, ...] = split("red blue green yellow black white orange purple pink brown grey gold")
PETS: tuple[str, ...] = split("dog cat bird fish horse rabbit hamster parrot turtle mouse goat pony")
FOODS: tuple[str, ...] = split("pizza pasta rice soup bread cheese salad cake sushi tacos noodles curry")
JOBS_ZH: tuple[str, ...] = split("老师 医生 护士 司机 厨师 农民 画家 歌手 作家 律师")

NOUNS: tuple[str, ...] = split(
    """apple banana cherry orange lemon grape melon peach plum pear tomato potato carrot onion garlic pepper bread
    butter cheese milk water coffee sugar salt honey chocolate cookie cake pizza pasta soup salad chicken turkey
    table chair window door floor ceiling kitchen bedroom bathroom garden garage roof chimney ladder hammer screw
    nail paint brush bucket broom blanket pillow mirror lamp candle clock bottle glass plate spoon fork knife
    pencil paper eraser ruler notebook backpack school teacher student library science history music guitar piano
    violin drum trumpet flute dance theater movie camera picture painting museum hospital doctor nurse medicine
    dog cat horse cow sheep goat pig duck goose rabbit mouse tiger lion bear wolf fox deer monkey elephant giraffe
    zebra camel kangaroo panda koala dolphin whale shark turtle lizard snake frog spider butterfly beetle ant bee
    eagle parrot penguin owl sparrow swan river lake ocean island mountain valley forest desert beach meadow
    flower rose tulip daisy tree leaf branch root seed grass rain snow wind storm thunder lightning rainbow cloud
    sun moon star planet comet rocket airplane train truck bicycle car boat ship bridge tunnel road street highway
    station airport harbor village city country market store bakery restaurant hotel castle tower church temple
    king queen prince princess knight dragon wizard fairy giant monster ghost pirate treasure diamond silver
    gold copper iron steel stone brick wood plastic leather cotton wool silk shirt pants jacket sweater coat
    shoe boot sock hat glove scarf belt button zipper pocket wallet purse umbrella basket hammock lantern
    summer winter spring autumn morning evening midnight monday friday sunday january april august october
    happy angry hungry thirsty sleepy clever brave gentle quick slow bright dark heavy light narrow wide ancient
    modern simple famous strange quiet noisy clean dirty empty travel whisper listen remember forget imagine
    discover follow gather wander climb stumble laugh smile dream wonder answer question number letter word
    sentence story poem novel author reader engine machine robot computer keyboard screen printer network memory
    battery magnet circuit signal wire switch motor wheel pedal brake saddle helmet anchor compass captain sailor
    farmer baker tailor painter singer writer soldier hunter fisher plumber judge lawyer mayor neighbor friend
    family mother father sister brother uncle cousin child baby finger elbow shoulder knee ankle stomach heart
    brain muscle bone tooth tongue throat forehead eyebrow whisker feather paw tail horn shell nest cave tent
    campfire marshmallow picnic holiday birthday present balloon ribbon puzzle marble kite swing slide puppet
    football tennis hockey basketball swimming running cycling victory trophy medal champion referee coach team"""
)
TOPICS: tuple[str, ...] = split(
    """the_sky love winter football dinosaurs the_moon black_holes history music cats dogs the_ocean money dreams
    time volcanoes politics art philosophy robots trains coffee chess Mars Napoleon gravity Shakespeare bees
    evolution the_internet democracy mathematics poetry cooking gardening"""
)
SYLLABLES: tuple[str, ...] = split(
    """ba be bi bo da de di do fa fe ga go ha he ja ka ke ki ko la le li lo lu ma me mi mo na ne ni no pa pe ra re ri
    ro sa se si so ta te ti to va ve vi vo wa za zo bra cla dri fre gla kra pli sta tri"""
)
ENDINGS: tuple[str, ...] = split("n r s l m t ra na ton ville dor berg ford by lin stad mar")
