import sys
from luthier.text.pii import find, scrub
for t,k in [("mail anna.help@shop.example now",[r"help@shop\.example"]),("mail bob@shop.example please",[r"shop"]),("mail thehelp@shop.example.com ok",[r"help@shop\.example"]),("call 020 7946 0958 or x",[r"0958"])]:
    print(repr(t),k,"->",scrub(t,"k",keep=k), "| without keep:", scrub(t,"k")[0])
from luthier.reading import as_json, _read_csv
import io
print(as_json({"text": b"hello", "category":"x"}, None))
rows="text,category\n"+"".join(f"message number {i},cat\n" for i in range(99))+'broken one,"cat\n'+"".join(f"message number {i},cat\n" for i in range(100,5000))
out=list(_read_csv(io.BytesIO(rows.encode())))
print(len(out), out[-1][0], {k:len(v) for k,v in out[-1][1].items()} if isinstance(out[-1][1],dict) else out[-1][1][:1], out[-1][2])
