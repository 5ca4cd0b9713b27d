import json

from posttrain.run import folder, rollout_log


def test_what_was_written_after_the_checkpoint_is_cut_off(tmp_path):
    assert rollout_log.length(tmp_path) == 0
    rollout_log.cut(tmp_path, 0)  # there is none
    assert list(tmp_path.iterdir()) == []
    rollout_log.append(tmp_path, [{"completion": "größer ⏎", "reward": 1.0}, {"completion": "\ud800", "reward": 0.0}])
    there = rollout_log.length(tmp_path)
    rollout_log.append(tmp_path, [{"completion": "later"}])
    with open(tmp_path / "rollouts.jsonl", "a") as file:
        file.write('{"completion": "killed in the mid')
    rollout_log.cut(tmp_path, there)
    text = (tmp_path / "rollouts.jsonl").read_text(encoding="utf-8")
    assert "größer" in text  # readable
    assert [json.loads(line)["completion"] for line in text.splitlines()] == ["größer ⏎", "\ud800"]
    rollout_log.cut(tmp_path, there + 100)  # never made longer
    assert rollout_log.length(tmp_path) == there


def test_a_new_run_in_the_folder_begins_a_new_one():
    assert rollout_log.NAME in folder.WRITTEN
