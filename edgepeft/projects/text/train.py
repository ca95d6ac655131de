"""On the device: train the bundle on your data, and write the update. A run that was interrupted is resumed."""

from edgepeft.data import load
from edgepeft_runtime import Bundle, Trainer

bundle = Bundle.open("bundle")
data, held_out = load("data.csv", bundle), load("held_out.csv", bundle)
with Trainer.open(bundle, state="run") as trainer:
    before = trainer.evaluate(held_out)
    report = trainer.fit(data, epochs=20, batch_size=16, lr=0.003, validate=held_out, schedule="cosine")
    after = trainer.evaluate(held_out)
    update = trainer.save_update("update.safetensors")
for record in report.history:
    print(f"epoch {record.epoch}: held-out loss {record.held_out_loss:.3f}, accuracy {record.held_out_accuracy:.2f}")
print(f"accuracy on unseen examples: {before.accuracy:.2f} before, {after.accuracy:.2f} after; {update}")
