"""The page under a real Airflow, as a person gets to it: by the menu, in Airflow's own frame."""

from tests.support.airflow.site import PAGE
from tests.support.browser import chromium
from tests.support.experiments.restored import RESUMED, make_restored


def test_the_menu_leads_to_the_curves_of_a_restored_experiment(running, seaweed, tmp_path):
    experiment = make_restored(tmp_path)
    seaweed.upload(experiment, f"{PAGE}/{experiment.name}")
    with chromium() as browser:
        page = browser.new_context(locale="en-US").new_page()
        page.goto(f"{running.base}/")
        page.get_by_text("Browse", exact=True).first.click()
        page.get_by_text("Tune experiments", exact=True).first.click()
        frame = page.frame_locator("iframe")
        frame.get_by_role("link", name=experiment.name).click()
        frame.get_by_role("tab", name="Curves").click()
        frame.locator("#chart canvas").wait_for()
        assert frame.locator("#chart").get_attribute("data-seams") == "1"
        assert frame.locator("#curve-values tbody tr", has_text=RESUMED).count() == 1
        assert "tab=curves" in page.evaluate("location.search")
        assert frame.locator("#main img").count() == 0
