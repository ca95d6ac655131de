"""The mistakes, by topic."""

from __future__ import annotations

from tests.mistakes.mistake import USAGE, Mistake

_TO = "--update u.safetensors"
_TRAIN = f"train bundle --data reviews.csv {_TO}"

MISTAKES: dict[str, list[Mistake]] = {
    "The command": [
        Mistake("A misspelt command", "trian bundle", ("'trian'", "'train'"), USAGE),
        Mistake("A command of another program", "finetune bundle", ("'finetune'", "edgepeft --help"), USAGE),
        Mistake("A misspelt option", "inspect bundle --tensor", ("--tensor", "--tensors"), USAGE),
        Mistake("A missing option", "prepare model", ("--out",), USAGE),
        Mistake("A missing argument", "inspect", ("BUNDLE",), USAGE),
        Mistake("A number in words", f"{_TRAIN} --epochs many", ("--epochs", "'many'", "integer"), USAGE),
        Mistake("No epoch", f"{_TRAIN} --epochs 0", ("--epochs", "x>=1"), USAGE),
        Mistake("A learning rate in words", f"{_TRAIN} --lr high", ("--lr", "'high'", "float"), USAGE),
        Mistake("A misspelt subcommand", "keys revok phone", ("'revok'", "'revoke'"), USAGE),
        Mistake("An empty path", "inspect ''", ("BUNDLE", "is empty"), USAGE),
        Mistake("Negative epochs", f"{_TRAIN} --epochs -3", ("--epochs", "-3", "x>=1"), USAGE),
        Mistake("Half an epoch", f"{_TRAIN} --epochs 1.5", ("--epochs", "'1.5'", "integer"), USAGE),
        Mistake("A negative seed", f"{_TRAIN} --seed -1", ("--seed", "-1", "x>=0"), USAGE),
        Mistake("Sizes without a number", "inspect bundle --sizes batch", ("'batch'", "batch=8,sequence=64"), USAGE),
    ],
    "The model": [
        Mistake(
            "A name on the Hugging Face Hub",
            "prepare bert-base-uncased --out b",
            ("nothing is downloaded", "hf download bert-base-uncased --local-dir"),
        ),
        Mistake(
            "A name with its owner",
            "doctor google/vit-base-patch16-224",
            ("nothing is downloaded", "hf download google/vit-base-patch16-224 --local-dir vit-base-patch16-224"),
        ),
        Mistake("A misspelt model", "prepare modle --out b", ("modle", "did you mean 'model'")),
        Mistake("A directory that is no model", "prepare no_model --out b", ("config.json", "save_pretrained")),
        Mistake("A configuration that is not JSON", "prepare half_model --out b", ("config.json", "save_pretrained")),
        Mistake(
            "A model without weights", "prepare no_weights --out b", ("no_weights", "model.safetensors", "complete")
        ),
        Mistake(
            "A torch checkpoint", "prepare classifier.pt --out b", ("classifier.pt", "file.py:function", "weights")
        ),
        Mistake("A Python file without a function", "prepare net.py --out b", ("net.py:make",)),
        Mistake("A misspelt function", "prepare net.py:mkae --out b", ("mkae", "did you mean 'make'")),
        Mistake("A file of Python that does not exist", "prepare nett.py:make --out b", ("nett.py", "'net.py'")),
        Mistake("A module that cannot be imported", "prepare my.model:make --out b", ("my.model:make", "No module")),
        Mistake("A function that fails", "prepare net.py:fails --out b", ("FileNotFoundError", "weights.pt")),
        Mistake("A function that returns the model alone", "prepare net.py:model_alone --out b", ("Linear", "example")),
        Mistake("A misspelt task", "prepare model --task text-clasification --out b", ("did you mean 'text-classif",)),
        Mistake("A model without a head for a task", "prepare bare_model --out b", ("BertModel", "name the task")),
        Mistake("An .onnx file that does not exist", "prepare nett.onnx --train 'a.*' --out b", ("'net.onnx'",)),
        Mistake("An .onnx file that is none", "prepare text.onnx --train 'a.*' --out b", ("text.onnx", "ONNX")),
        Mistake("A .gguf file that does not exist", "prepare tiny.gguf --out b", ("tiny.gguf", "give the path")),
        Mistake("An adapter whose base is not on disk", "prepare old_adapter --out b", ("meta/llama", "base")),
        Mistake("Two classes of one name", "prepare model --classes yes,yes --out b", ("'yes'", "classes")),
        Mistake(
            "An environment without torch", "prepare model --out b", ("torch", "edgepeft[host]"), without=("torch",)
        ),
    ],
    "Method, loss and compression": [
        Mistake("A misspelt method", "prepare model --method loraa --out b", ("'loraa'", "'lora'"), USAGE),
        Mistake("Rank 0", "prepare model --method lora --rank 0 --out b", ("rank", "1 or more")),
        Mistake("A rank in words", "prepare model --method lora --rank eight --out b", ("--rank", "integer"), USAGE),
        Mistake(
            "A setting of another method",
            "prepare model --method bitfit --rank 8 --out b",
            ("--rank", "bitfit", "lora"),
            USAGE,
        ),
        Mistake(
            "A misspelt module",
            "prepare model --method lora --target-modules qeury --out b",
            ("'qeury'", "'query'"),
        ),
        Mistake(
            "Modules of another architecture",
            "prepare model --method lora --target-modules q_proj,v_proj --out b",
            ("'q_proj'", "query"),
        ),
        Mistake("A misspelt loss", "prepare model --loss cross_entropie --out b", ("did you mean 'cross_entropy'",)),
        Mistake("A misspelt optimizer", "prepare model --optimizer adam --out b", ("'adam'", "'adamw'"), USAGE),
        Mistake("A negative weight decay", "prepare model --weight-decay -1 --out b", ("weight_decay", "0 or more")),
        Mistake("An unknown precision", "prepare model --compute int16 --out b", ("int16", "int8", "int4"), USAGE),
        Mistake(
            "int8 of a model that is too small",
            "prepare net.py:make --compute int8 --out b",
            ("2,048 elements", "fp32"),
        ),
        Mistake("Memory in words", "prepare model --memory-budget little --out b", ("'little'", "256MB"), USAGE),
        Mistake("Too little memory", "prepare net.py:make --memory-budget 1kB --out b", ("1.0 kB", "--allow-depth")),
        Mistake("Pruning without a fraction", "prepare model --prune heads --out b", ("heads", "heads=0.25")),
        Mistake("An .onnx file without a method", "prepare net.onnx --out b", ("--train", "--method")),
        Mistake(
            "A misspelt initializer", "prepare net.onnx --train clasifier.weight --out b", ("'classifier.weight'",)
        ),
        Mistake("A method that needs torch, for .onnx", "prepare net.onnx --method dora --out b", ("dora", "lora")),
        Mistake("A class without a name", "prepare model --classes yes,no, --out b", ("empty name",), USAGE),
        Mistake("A bundle for a model", "prepare bundle --out b", ("bundle", "edgepeft train")),
        Mistake("A bundle that exists", "prepare model --out bundle", ("bundle", "overwrite")),
    ],
    "Data": [
        Mistake("A misspelt path", f"train bundle --data review.csv {_TO}", ("review.csv", "'reviews.csv'")),
        Mistake("An address", f"train bundle --data https://x.org/a.csv {_TO}", ("nothing is downloaded", "path")),
        Mistake("A ~ in quotes", f"train bundle --data '~/a.csv' {_TO}", ("shells replace ~",)),
        Mistake("A link to nothing", f"train bundle --data gone.csv {_TO}", ("link to 'elsewhere.csv'",)),
        Mistake("A link to itself", f"train bundle --data loop.csv {_TO}", ("link to 'loop.csv'",)),
        Mistake("A name that is too long", f"train bundle --data {'a' * 256}.csv {_TO}", ("shorter name",)),
        Mistake("A folder that does not exist", f"train bundle --data data/a.csv {_TO}", ("there is no folder data",)),
        Mistake("A spreadsheet", f"train bundle --data reviews.xlsx {_TO}", (".xlsx", "save it as .csv")),
        Mistake("A pickle", f"train bundle --data pickled.pkl {_TO}", (".pkl", "numpy.savez")),
        Mistake("A picture instead of its folder", f"train camera --data photos/cat/1.png {_TO}", ("the folder",)),
        Mistake("A text file", f"train bundle --data notes.txt {_TO}", (".txt", ".csv", "line")),
        Mistake(
            "Columns of other names", f"train bundle --data stars.csv {_TO}", ("'text'", "review", "--text-column")
        ),
        Mistake("A misspelt column", f"{_TRAIN} --label-column lable", ("'lable'", "did you mean 'label'")),
        Mistake("Two columns of one name", f"train bundle --data twice.csv {_TO}", ("several columns 'text'",)),
        Mistake("A class that the model does not know", f"train bundle --data classes.csv {_TO}", ("maybe", "no, yes")),
        Mistake("An index that is too large", f"train bundle --data indices.csv {_TO}", ("'2'", "0 to 1", "line 2")),
        Mistake("Names and indices mixed", f"train bundle --data mixed.csv {_TO}", ("line 3", "'yes'", "'0'")),
        Mistake("A missing label", f"train bundle --data unlabelled.csv {_TO}", ("line 2", "no label")),
        Mistake("An empty file", f"train bundle --data empty.csv {_TO}", ("empty", "header")),
        Mistake("A header alone", f"train bundle --data header.csv {_TO}", ("no examples",)),
        Mistake("A comma in a text", f"train bundle --data comma.csv {_TO}", ("line 2", "3 cells", "double quotes")),
        Mistake("A quote that is not closed", f"train bundle --data quote.csv {_TO}", ("line 2", "quotes")),
        Mistake("A file that is not UTF-8", f"train bundle --data latin.csv {_TO}", ("UTF-8", "iconv")),
        Mistake("A spreadsheet's Unicode text", f"train bundle --data wide.csv {_TO}", ("line 1", "iconv -f UTF-16 ")),
        Mistake("UTF-16 without its mark", f"train bundle --data zeros.csv {_TO}", ("line 1", "iconv -f UTF-16LE ")),
        Mistake("A download that was interrupted", f"train bundle --data cut.csv.gz {_TO}", ("cut.csv.gz", "complete")),
        Mistake("No header", f"train bundle --data no_header.csv {_TO}", ("'text' in the first line", "a good film")),
        Mistake("A header in capitals", f"train bundle --data upper.csv {_TO}", ("did you mean 'Text'",)),
        Mistake("A line that is not JSON", f"train bundle --data broken.jsonl {_TO}", ("line 2", "not JSON")),
        Mistake(
            "A number where a text belongs", f"train bundle --data numbers.jsonl {_TO}", ("line 1", "42", "string")
        ),
        Mistake("A .json file with one object", f"train bundle --data object.json {_TO}", ("not a list", ".jsonl")),
        Mistake("A text where a number belongs", f"train sensor --data rows.csv {_TO}", ("'c'", "'many'", "number")),
        Mistake("Separators of thousands", f"train sensor --data thousands.csv {_TO}", ("'1,000'", "thousands")),
        Mistake("NaN in a table", f"train sensor --data missing.csv {_TO}", ("line 2", "'c'", "missing", "fill in")),
        Mistake("NaN in an array", f"train sensor --data holes.npz {_TO}", ("'input'", "[0, 0]", "missing values")),
        Mistake("Whole numbers for floats", f"train sensor --data whole.npz {_TO}", ("int64", "astype('float32')")),
        Mistake("Labels of another length", f"train sensor --data unequal.npz {_TO}", ("input: 4, labels: 5",)),
        Mistake("Arrays without names", f"train sensor --data unnamed.npz {_TO}", ("'arr_0'", "'input', 'labels'")),
        Mistake("A column too few", f"train sensor --data narrow.csv {_TO}", ("3 numbers", "a, b, label")),
        Mistake("Arrays of another shape", f"train sensor --data floats.npz {_TO}", ("[4, 5]", "3")),
        Mistake("An array that is missing", f"train bundle --data arrays.npz {_TO}", ("attention_mask",)),
        Mistake("Images for a model of texts", f"train bundle --data pictures {_TO}", ("does not accept images",)),
        Mistake("A folder for a model of texts", f"train bundle --data no_model {_TO}", ("a table of texts",)),
        Mistake("Folders of a split", f"train camera --data split {_TO}", ("such as split/train",)),
        Mistake("A table for a model of images", f"train camera --data reviews.csv {_TO}", ("folder", "image")),
        Mistake("Images without folders of classes", f"train camera --data loose {_TO}", ("loose", "its class")),
        Mistake("A folder that is no class", f"train camera --data pictures {_TO}", ("purple", "dark, light")),
        Mistake(
            "A picture that cannot be decoded",
            "predict camera --data photos/cat",
            ("cat/1.png", "save it again"),
        ),
        Mistake(
            "An environment without tokenizers",
            f"{_TRAIN} --state fresh",
            ("tokenizers", "edgepeft[text]"),
            without=("tokenizers",),
        ),
    ],
    "Prompts and answers": [
        Mistake("An empty answer", f"train chat --data unanswered.jsonl {_TO}", ("line 1", "answer is empty")),
        Mistake("A number for a prompt", f"train chat --data numbered.jsonl {_TO}", ("line 1", "'prompt'", "42")),
        Mistake(
            "Answers in another column", f"train chat --data response.csv {_TO}", ("'answer'", "response", "--label-c")
        ),
        Mistake(
            "Conversations without a template",
            f"train chat --data turns.jsonl {_TO}",
            ("chat template", "prompt and answer"),
        ),
        Mistake("A prompt that is too long", f"generate chat --prompt '{'word ' * 44}'", ("45 tokens", "40")),
        Mistake("A temperature below 0", "generate chat --prompt hello --temperature -1", ("-1.0", "x>=0.0"), USAGE),
        Mistake(
            "An adapter of another model", "generate chat --prompt hello --adapter bundle.safetensors", ("base of the",)
        ),
    ],
    "Training": [
        Mistake("A misspelt bundle", f"train bundel --data reviews.csv {_TO}", ("bundel", "'bundle'")),
        Mistake("A model instead of a bundle", f"train model --data reviews.csv {_TO}", ("edgepeft prepare model",)),
        Mistake("A bundle of another version", f"train newer --data reviews.csv {_TO}", ("99", "version 2")),
        Mistake("A manifest that is not JSON", "inspect unreadable", ("manifest", "JSON")),
        Mistake("A file that has changed", "inspect flipped", ("weights.bin", "again")),
        Mistake("A file that is missing", "inspect lost", ("train.onnx", "again")),
        Mistake(
            "An update in a folder that is missing",
            "train bundle --data reviews.csv --update out/u.safetensors",
            ("out",),
        ),
        Mistake("An update that is a folder", "train bundle --data reviews.csv --update photos", ("photos", "folder")),
        Mistake(
            "A disk that is read-only",
            "train bundle --data reviews.csv --update readonly/u.safetensors",
            ("readonly", "writ"),
            mounted=True,
        ),
        Mistake(
            "A disk that is full",
            "train bundle --data reviews.csv --update full_disk/u.safetensors --state full_disk/run",
            ("full_disk", "the disk is full"),
            mounted=True,
        ),
        Mistake("An update over the data", "train bundle --data reviews.csv --update reviews.csv", ("--data",), USAGE),
        Mistake(
            "An update in a bundle", "train bundle --data reviews.csv --update bundle/weights.bin", ("inside",), USAGE
        ),
        Mistake("A run in a bundle", f"{_TRAIN} --state bundle/run", ("--state", "inside a bundle"), USAGE),
        Mistake("A run over another bundle", f"{_TRAIN} --state camera", ("camera", "it is a bundle")),
        Mistake("A million threads", f"{_TRAIN} --state fresh --threads 1000000", ("threads = 1000000", "1024")),
        Mistake("Endless epochs", f"{_TRAIN} --state fresh --epochs 1{'0' * 30}", ("epochs", "at most")),
        Mistake("A learning rate of NaN", f"{_TRAIN} --state fresh --lr nan", ("lr = nan", "finite")),
        Mistake("A file where a folder belongs", f"{_TRAIN} --state afile", ("afile", "folder")),
        Mistake(
            "A run of other settings",
            "train bundle --data reviews.csv --update mine.safetensors --epochs 1 --batch-size 2",
            ("batch_size: this run 2, the state 8", "another state directory"),
        ),
        Mistake("A run of another bundle", f"train sensor --data sensed.npz --state mine.state {_TO}", ("mine.state",)),
        Mistake("An adapter of another base", f"{_TRAIN} --adapter sensor.safetensors", ("sensor.safetensors", "base")),
        Mistake("Held-out data that is not there", f"{_TRAIN} --validate held.csv", ("held.csv",)),
        Mistake("A decimal comma", f"{_TRAIN} --validate 0,1", ("--validate", "point"), USAGE),
        Mistake("A fraction above 1", f"{_TRAIN} --validate 10", ("10", "between 0 and 1")),
        Mistake("A misspelt metric", f"{_TRAIN} --validate 0.5 --metric acuracy", ("'acuracy'", "'accuracy'")),
        Mistake("A metric without held-out data", f"{_TRAIN} --metric f1", ("metric", "--validate")),
        Mistake(
            "A metric of another task",
            "evaluate sensor --data sensed.npz --metric accuracy",
            ("accuracy", "mse"),
        ),
        Mistake("Patience without held-out data", f"{_TRAIN} --patience 2", ("patience", "--validate")),
        Mistake(
            "A learning rate that is far too high", f"{_TRAIN} --lr 1e30 --state fast", ("not finite", "learning rate")
        ),
        Mistake("A warmup in words", f"{_TRAIN} --warmup long", ("'long'", "number"), USAGE),
    ],
    "Results": [
        Mistake(
            "An unknown format of answers", "predict bundle --data reviews.csv --out a.txt", (".jsonl", ".npz"), USAGE
        ),
        Mistake("Answers over the data", "predict bundle --data numbers.jsonl --out numbers.jsonl", ("--data",), USAGE),
        Mistake("A run for an adapter", "evaluate bundle --data reviews.csv --adapter mine.state", ("an update",)),
        Mistake(
            "Bundle and update exchanged", "merge bundle.safetensors bundle --to peft --out a", ("it is an update",)
        ),
        Mistake("A project in a full folder", "new text photos", ("photos exists", "new folder")),
        Mistake("Generating with a classifier", "generate bundle --prompt hello", ("causal",)),
        Mistake("Generating without a prompt", "generate chat", ("--prompt",), USAGE),
        Mistake(
            "A misspelt format", "merge bundle bundle.safetensors --to onyx --out m.onnx", ("'onyx'", "'onnx'"), USAGE
        ),
        Mistake(
            "A wrong suffix", "merge bundle bundle.safetensors --to onnx --out merged.bin", (".onnx", "merged.bin")
        ),
        Mistake(
            "An update of another bundle", "merge bundle camera.safetensors --to onnx --out m.onnx", ("camera", "base")
        ),
        Mistake(
            "A file that is no update", "merge bundle notes.safetensors --to onnx --out m.onnx", ("notes.safetensors",)
        ),
        Mistake(
            "An update that is not there",
            "merge bundle mein.safetensors --to onnx --out m.onnx",
            ("'mine.safetensors'",),
        ),
        Mistake(
            "A model that was not made by peft", "merge sensor sensor.safetensors --to peft --out a", ("peft", "torch")
        ),
        Mistake(
            "A target that exists", "merge bundle bundle.safetensors --to onnx --out net.onnx", ("exists", "overwrite")
        ),
        Mistake(
            "A folder without updates", "aggregate collected --bundle bundle --out r.safetensors", ("no files", "pull")
        ),
        Mistake("Updates in a folder that is missing", "pull usb --into kept --bundle bundle", ("usb",)),
        Mistake(
            "A run for an update", "merge bundle mine.state --to onnx --out m.onnx", ("directory of a run", "--update")
        ),
        Mistake(
            "A table for an update", "merge bundle reviews.csv --to onnx --out m.onnx", ("no safetensors", "text,label")
        ),
        Mistake("A report with another bundle", "report mine.state --bundle camera", ("mine.state", "another bundle")),
        Mistake("A report on a misspelt run", "report mein.state", ("mein.state", "'mine.state'")),
        Mistake("A workspace that does not exist", "status --workspace fleet", ("fleet", "keys new")),
    ],
    "Fleets": [
        Mistake("Publishing without keys", "publish bundle stick --workspace fleet", ("fleet", "keys new")),
        Mistake("Collecting before the first round", "pull stick --workspace fleet", ("fleet", "publish")),
        Mistake("A name that is taken", "keys add phone --workspace host --out p.json", ("phone", "another name")),
        Mistake(
            "An identity over another one", "keys add pi --workspace host --out phone.json", ("phone.json", "secret")
        ),
        Mistake("A device that is not registered", "keys revoke tablet --workspace host", ("tablet", "status")),
        Mistake(
            "A page without https", "keys link phone.json --page a.org --server https://b.org", ("'a.org'", "https:")
        ),
        Mistake("Another bundle's round", "publish camera stick --workspace host", ("another bundle", "workspace")),
        Mistake("Joining without an identity", "join stick --device pi", ("pi/device.json", "keys add")),
        Mistake("A table for an identity", "join stick --device pi --identity reviews.csv", ("reviews.csv", "JSON")),
        Mistake("A remote that is not there", "join stik --device phone", ("stik", "mount")),
        Mistake("A misspelt address", "join htps://a.org --device phone", ("htps://a.org", "https://")),
        Mistake("Joining with another bundle", "join stick --device phone --bundle camera", ("another bundle",)),
        Mistake("Training before joining", f"train --device pi --data reviews.csv {_TO}", ("pi", "join")),
        Mistake("Delivering a table", "deliver reviews.csv stick --device phone", ("no safetensors", "text,label")),
        Mistake("A round that does not exist", "rollback stick --workspace host --to 9", ("round 9", "status")),
        Mistake(
            "An unknown robust mean",
            "aggregate collected --bundle bundle --out r.safetensors --robust krum",
            ("'krum'", "median or trimmed-mean"),
        ),
        Mistake(
            "Noise without a norm",
            "aggregate collected --bundle bundle --out r.safetensors --dp-noise 1",
            ("clip", "multiple"),
        ),
        Mistake(
            "A certificate that is not there",
            "serve --workspace host --certificate a.pem --private-key b.pem",
            ("no file a.pem", "PEM"),
        ),
    ],
}


def all_mistakes() -> list[Mistake]:
    """Return the mistakes of all topics."""
    return [mistake for mistakes in MISTAKES.values() for mistake in mistakes]
